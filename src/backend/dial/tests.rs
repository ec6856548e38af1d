use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;

use super::*;
use crate::config::{Balance, Place, Target, UpstreamTls};
use crate::executor::on_executor;

/// A dialer whose one host has the addresses that `answers` holds when it is looked up.
fn dialer(answers: &Arc<Mutex<Vec<SocketAddr>>>) -> Dialer {
    let place = Place {
        host: UpstreamHost::Tcp("db.example".to_owned()),
        port: 1,
    };
    let config = Config::for_upstream(Upstream {
        places: vec![place],
        target: Target::Any,
        balance: Balance::Disable,
        database: String::new(),
        user: String::new(),
        password: None,
        tls: UpstreamTls::default(),
    });
    let answers = answers.clone();
    let resolver = Resolver::new(move |host, port| {
        assert_eq!((host, port), ("db.example", 1));
        Ok(answers.lock().unwrap().clone())
    });
    let handshakes = Handshakes::start().unwrap();
    Dialer::new(Arc::new(config), None, handshakes).with_resolver(resolver)
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    listener().1
}

#[test]
fn all_of_a_name_s_addresses_are_tried_and_a_change_is_followed() {
    on_executor(async {
        let (_one, first) = listener();
        let (_other, second) = listener();
        let answers = Arc::new(Mutex::new(vec![nobody(), first]));
        let dialer = dialer(&answers);
        let (_, spot) = dialer.dial(0, Encryption::None).await.unwrap();
        assert_eq!(spot.address, Some(first));

        *answers.lock().unwrap() = vec![second];
        let (_, moved) = dialer.dial(0, Encryption::None).await.unwrap();
        assert_eq!(moved.address, Some(second));
        // A cancel request goes where its backend is, whatever the name means by now.
        let again = dialer.dial_again(spot).await.unwrap();
        assert_eq!(again.tcp().unwrap().peer_address().unwrap(), first);
    });
}

#[test]
fn a_name_without_an_address_is_an_error() {
    on_executor(async {
        let dialer = dialer(&Arc::default());
        let error = dialer.dial(0, Encryption::None).await.unwrap_err();
        assert!(
            error.to_string().contains("db.example has no address"),
            "{error}"
        );
    });
}
