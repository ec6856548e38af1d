//! Owns the forwarding of cancel requests (protocol chapter 55.2.8).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::backend::Dialer;
use crate::clock::timers;
use crate::ledger::CancelTarget;

/// How long PostgreSQL may take to close the connection: by then it has sent the signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a cancel request, and waits until PostgreSQL has closed the connection: only then is it no longer in flight.
///
/// # Errors
/// The connection could not be made, or broke.
pub async fn send(dialer: &Dialer, target: &CancelTarget) -> io::Result<()> {
    let key = &target.key;
    let attempt = async {
        let mut stream = dialer.dial_again(target.spot).await?;
        let length = u32::try_from(12 + key.secret.len()).expect("keys have at most 256 bytes");
        let mut request = Vec::with_capacity(12 + key.secret.len());
        request.extend_from_slice(&length.to_be_bytes());
        request.extend_from_slice(&80_877_102_u32.to_be_bytes());
        request.extend_from_slice(&key.pid.to_be_bytes());
        request.extend_from_slice(&key.secret);
        stream.write_all(&request).await?;
        stream.flush().await?;
        stream.read(&mut [0; 1]).await.map(|_| ())
    };
    timers::timeout(PATIENCE, attempt)
        .await
        .map_err(io::Error::from)?
}
