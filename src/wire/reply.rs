//! Owns the messages that we originate towards clients, in PostgreSQL's shape (protocol chapters 55.7 and 55.8).

use bytes::BytesMut;
use pgwire::error::ErrorInfo;
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use pgwire::messages::startup::{Authentication, NegotiateProtocolVersion};

use crate::lease::Status;
use crate::wire::extended::write_frame;
use crate::wire::frame::{HEADER, Header};

/// Whose fault an error is: the one value that feeds the log, the metric and the SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Client,
    Backend,
    Proxy,
}

impl Fault {
    /// The word in every view.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Proxy => "proxy",
        }
    }
}

/// An error that a client may see. Nothing internal belongs into its texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    pub fault: Fault,
    /// The SQLSTATE.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// PostgreSQL's own ErrorResponse, forwarded as it is; the texts above are for the log.
    pub verbatim: Option<Box<[u8]>>,
}

impl ClientError {
    /// An error of ours.
    #[must_use]
    pub fn new(fault: Fault, code: &str, message: impl Into<String>) -> Self {
        Self {
            fault,
            code: code.to_owned(),
            message: message.into(),
            detail: None,
            hint: None,
            verbatim: None,
        }
    }

    /// PostgreSQL's own, by the body of its ErrorResponse.
    #[must_use]
    pub fn from_postgresql(body: &[u8]) -> Self {
        let fields = Fields::read(body);
        let mut frame = Vec::new();
        write_frame(&mut frame, b'E', body);
        let mut error = Self::new(Fault::Backend, &fields.code, fields.message);
        error.verbatim = Some(frame.into());
        error
    }

    /// With a hint on what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The ErrorResponse of severity FATAL.
    #[must_use]
    pub fn fatal(&self) -> Vec<u8> {
        if let Some(verbatim) = &self.verbatim {
            return verbatim.to_vec();
        }
        encode(&ErrorResponse::from(self.info("FATAL")))
    }

    /// The ErrorResponse of severity ERROR: the session goes on.
    #[must_use]
    pub fn error(&self) -> Vec<u8> {
        encode(&ErrorResponse::from(self.info("ERROR")))
    }

    fn info(&self, severity: &str) -> ErrorInfo {
        let mut info = ErrorInfo::new(severity.to_owned(), self.code.clone(), self.message.clone());
        info.severity_nonlocalized = Some(severity.to_owned());
        info.detail.clone_from(&self.detail);
        info.hint.clone_from(&self.hint);
        info
    }
}

/// PostgreSQL's own words for a prepared statement whose rows would look otherwise by now; drivers look for each of them.
#[must_use]
pub fn changed_plan() -> Vec<u8> {
    let text = "cached plan must not change result type";
    let mut info = ClientError::new(Fault::Client, "0A000", text).info("ERROR");
    info.file_name = Some("plancache.c".to_owned());
    info.routine = Some("RevalidateCachedQuery".to_owned());
    encode(&ErrorResponse::from(info))
}

/// A NoticeResponse of severity NOTICE.
#[must_use]
pub fn notice(message: &str, hint: &str) -> Vec<u8> {
    let mut info = ErrorInfo::new("NOTICE".to_owned(), "00000".to_owned(), message.to_owned());
    info.severity_nonlocalized = Some("NOTICE".to_owned());
    info.hint = Some(hint.to_owned());
    encode(&NoticeResponse::from(info))
}

/// PostgreSQL's own words for a name that is too long.
#[must_use]
pub fn truncated(name: &str, taken: &str) -> Vec<u8> {
    let text = format!("identifier \"{name}\" will be truncated to \"{taken}\"");
    let mut info = ErrorInfo::new("NOTICE".to_owned(), "42622".to_owned(), text);
    info.severity_nonlocalized = Some("NOTICE".to_owned());
    encode(&NoticeResponse::from(info))
}

/// The bodies of these messages, one after the other.
pub fn each(mut messages: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let header = Header::read(messages).ok().flatten()?;
        let (message, rest) = messages.split_at_checked(header.total())?;
        messages = rest;
        Some(&message[HEADER..])
    })
}

/// Puts the session that `sender` knows in the place of a process id in every NotificationResponse of `frames`: by it, a
/// client tells its own notifications from others'.
pub fn sign(frames: &mut [u8], sender: impl Fn(u32) -> Option<u32>) {
    let mut at = 0;
    while let Ok(Some(header)) = Header::read(&frames[at..]) {
        let end = (at + header.total()).min(frames.len());
        let pid = frames[at + HEADER..end].first_chunk_mut::<4>();
        if let Some(pid) = pid
            && let Some(session) = sender(u32::from_be_bytes(*pid))
        {
            *pid = session.to_be_bytes();
        }
        at = end;
    }
}

/// AuthenticationOk.
#[must_use]
pub const fn authentication_ok() -> [u8; 9] {
    [b'R', 0, 0, 0, 8, 0, 0, 0, 0]
}

/// AuthenticationSASL, AuthenticationSASLContinue or AuthenticationSASLFinal.
#[must_use]
pub fn authentication(message: &Authentication) -> Vec<u8> {
    encode(message)
}

/// AuthenticationCleartextPassword.
#[must_use]
pub fn ask_for_cleartext() -> Vec<u8> {
    encode(&Authentication::CleartextPassword)
}

/// AuthenticationMD5Password, with its salt.
#[must_use]
pub fn ask_for_md5(salt: [u8; 4]) -> Vec<u8> {
    encode(&Authentication::MD5Password(salt.to_vec()))
}

/// NegotiateProtocolVersion: the newest version that we speak, and the options that we don't know.
#[must_use]
pub fn negotiate(minor: u16, options: Vec<String>) -> Vec<u8> {
    encode(&NegotiateProtocolVersion::new(
        (3 << 16) | i32::from(minor),
        options,
    ))
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    let length = u32::try_from(4 + name.len() + value.len() + 2);
    out.push(b'S');
    out.extend_from_slice(&length.expect("a setting is far below 4 GB").to_be_bytes());
    for text in [name, value] {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    }
}

/// Appends a BackendKeyData.
pub fn backend_key_data(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    let length = u32::try_from(8 + secret.len()).expect("a secret has at most 256 bytes");
    out.push(b'K');
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(secret);
}

/// A ReadyForQuery with this status.
#[must_use]
pub const fn ready(status: Status) -> [u8; 6] {
    [b'Z', 0, 0, 0, 5, status.as_byte()]
}

fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut out = BytesMut::new();
    message
        .encode(&mut out)
        .expect("our own messages are within every bound");
    out.to_vec()
}

/// The fields of an ErrorResponse or NoticeResponse that PostgreSQL sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    pub severity: String,
    pub code: String,
    pub message: String,
}

impl Fields {
    /// Reads the body of the message. A field that is missing stays empty (CVE-2026-6666).
    #[must_use]
    pub fn read(mut body: &[u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&kind, rest)) = body.split_first() {
            let Some((value, rest)) = crate::wire::frame::cstr(rest) else {
                break;
            };
            let value = || String::from_utf8_lossy(value).into_owned();
            match kind {
                b'S' if fields.severity.is_empty() => fields.severity = value(),
                b'V' => fields.severity = value(),
                b'C' => fields.code = value(),
                b'M' => fields.message = value(),
                _ => {}
            }
            body = rest;
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_all_that_a_client_shows() {
        let bytes = ClientError::new(Fault::Proxy, "53300", "no backend")
            .hint("raise max_backends")
            .fatal();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(
            Fields::read(&bytes[5..]),
            Fields {
                severity: "FATAL".into(),
                code: "53300".into(),
                message: "no backend".into()
            }
        );
        assert!(text.contains("Hraise max_backends"));
    }

    #[test]
    fn notifications_bear_the_ids_of_sessions_that_are_known() {
        let notification = |pid: u32| [b"A\0\0\0\x0C", &pid.to_be_bytes()[..], b"c1\0\0"].concat();
        let mut frames = [notification(4711), notification(4712)].concat();

        sign(&mut frames, |pid| (pid == 4711).then_some(10_000_001));

        assert_eq!(
            frames,
            [notification(10_000_001), notification(4712)].concat()
        );
    }

    #[test]
    fn an_error_without_sqlstate_is_read() {
        assert_eq!(Fields::read(b"SERROR\0Mboom\0\0").code, "");
        assert_eq!(Fields::read(b"SERR").message, "");
    }
}
