//! Encrypted connections and client certificates, on each broker that the environment names.
//!
//! `scripts/brokers up` starts them with throw-away certificates, and says where those are.

use std::{env, fs, io::Read, net::TcpListener, path::PathBuf, sync::Arc, thread, time::Duration};

use futures_util::StreamExt;
use postrider_core::{
    Address, ConsumerOptions, Env, Envelope, ErrorKind, Message, PublisherExt, PublisherOptions,
    Queue, Topology, Transport, TransportEvent,
};
use postrider_testkit::rabbitmq::Management;
use postrider_transport_amqp10::{Amqp10, Options, Tls};
use rustls::{
    ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// How long connecting may take; whoever has to say no must not need it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// A broker with its certificates.
struct Broker {
    /// What the names of its variables end in.
    suffix: &'static str,
    url: String,
    certificates: PathBuf,
}

/// RabbitMQ 4.3, and 4.0 where it runs.
fn brokers() -> Vec<Broker> {
    let of = |suffix| Broker {
        suffix,
        url: variable("POSTRIDER_AMQPS_URL", suffix).replace("amqps://", "amqp10s://"),
        certificates: variable("POSTRIDER_AMQPS_CERTIFICATES", suffix).into(),
    };
    let mut brokers = vec![of("")];
    if env::var_os("POSTRIDER_AMQPS_URL_40").is_some() {
        brokers.push(of("_40"));
    }
    brokers
}

fn variable(name: &str, suffix: &str) -> String {
    env::var(format!("{name}{suffix}")).unwrap_or_else(|_| {
        panic!("{name}{suffix} is not set; start the brokers by `eval \"$(scripts/brokers up)\"`")
    })
}

impl Broker {
    fn file(&self, name: &str) -> String {
        let path = self.certificates.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn trusting(&self) -> Tls {
        Tls::default().with_authorities(self.file("ca.pem"))
    }

    fn showing(&self, identity: &str) -> Tls {
        let file = |ending: &str| self.file(&format!("{identity}.{ending}"));
        self.trusting().with_identity(file("pem"), file("key"))
    }

    /// Its URL without credentials, which asks to log in by the client certificate.
    fn external(&self) -> String {
        let (_, host) = self.url.rsplit_once('@').expect("a URL with credentials");
        format!("amqp10s://{host}?auth_mechanism=external")
    }
}

fn options(tls: Tls) -> Options {
    Options::default()
        .with_tls(tls)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_reconnect_pause(Duration::from_secs(1))
}

async fn connect(url: &str, tls: Tls) -> Amqp10 {
    Amqp10::connect_with(url, options(tls)).await.expect("an encrypted connection")
}

/// Connects, which must be refused as `kind` with `why`, and not by waiting.
async fn refused(url: &str, tls: Tls, kind: ErrorKind, why: &str) {
    let begun = Env::system().now();
    let error = Amqp10::connect_with(url, options(tls)).await.expect_err(why);
    assert!(begun.elapsed() < CONNECT_TIMEOUT, "it waited: {error}");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.message().contains(why), "{error:?}");
    let told = format!("{error} {error:?}");
    assert!(!told.contains("PRIVATE") && !told.contains("guest:guest"), "{told}");
}

/// Sends a message and takes it.
async fn pass_a_message(transport: &Amqp10) {
    let queue = format!("test-tls-{}", transport.env().new_id());
    let topology = Topology::new().queue(Queue::classic(queue.clone()));
    transport.declare(&topology).await.expect("a queue");
    let publisher = transport.publisher(PublisherOptions::default()).await.expect("a publisher");
    let mut consumer =
        transport.consumer(&queue, ConsumerOptions::default()).await.expect("a consumer");
    // More than one TLS record of 16 KiB.
    let body = vec![7; 100_000];
    let envelope = Envelope::new(Address::queue(queue), Message::new(body.clone()));
    publisher.publish(envelope).await.expect("a publish");
    let delivery = tokio::time::timeout(Duration::from_secs(30), consumer.recv()).await;
    let delivery = delivery.expect("in time").expect("it goes on").expect("a delivery");
    assert_eq!(delivery.message().body, body);
    delivery.ack();
    drop(consumer);
    transport.remove(&topology).await.expect("removing");
}

#[tokio::test]
async fn messages_pass_and_the_version_is_known() {
    for broker in brokers() {
        let transport = connect(&broker.url, broker.trusting()).await;
        assert!(transport.url().starts_with("amqp10s://guest@localhost:"), "{}", transport.url());
        // Only 4.3 releases without counting: the greeting was read through the encryption.
        assert_eq!(transport.capabilities().uncounted_release, broker.suffix.is_empty());
        pass_a_message(&transport).await;
        transport.close(Duration::from_secs(5)).await.expect("closing");
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_trusted_is_refused() {
    for broker in brokers() {
        let why = "the broker's certificate is from no authority that is trusted";
        refused(&broker.url, Tls::default(), ErrorKind::Unauthorized, why).await;
        let stranger = Tls::default().with_authorities(broker.file("stranger.pem"));
        refused(&broker.url, stranger, ErrorKind::Unauthorized, why).await;
        let other = broker.url.replace("@localhost", "@127.0.0.1");
        let why = "certificate not valid for name \"127.0.0.1\"";
        refused(&other, broker.trusting(), ErrorKind::Unauthorized, why).await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    for broker in brokers() {
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions of TLS")
                .with_no_client_auth()
                .with_single_cert(
                    vec![
                        CertificateDer::from_pem_slice(broker.file("expired.pem").as_bytes())
                            .unwrap(),
                    ],
                    PrivateKeyDer::from_pem_slice(broker.file("expired.key").as_bytes()).unwrap(),
                )
                .expect("the configuration of a server");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("amqp10s://localhost:{}", listener.local_addr().unwrap().port());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
            connection.complete_io(&mut stream).expect_err("the client says no");
        });
        let why = "certificate expired";
        refused(&url, broker.trusting(), ErrorKind::Unauthorized, why).await;
        server.join().expect("a server that was left");
    }
}

#[tokio::test]
async fn the_wrong_port_is_told() {
    for broker in brokers() {
        let plain = variable("POSTRIDER_AMQP_URL", broker.suffix);
        let plain_port = plain.rsplit_once(':').unwrap().1;
        let (host, tls_port) = broker.url.rsplit_once(':').unwrap();
        let encrypted = format!("{host}:{plain_port}");
        let why = "the server does not speak TLS on this port";
        refused(&encrypted, broker.trusting(), ErrorKind::Unsupported, why).await;
        let unencrypted = format!("amqp10://guest:guest@localhost:{tls_port}");
        let why = "this port of the server is for TLS; use amqp10s://";
        refused(&unencrypted, broker.trusting(), ErrorKind::Unsupported, why).await;
    }
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up_in_time() {
    let limit = Duration::from_millis(500);
    for (query, options) in [
        ("", Options::default().with_connect_timeout(limit)),
        ("?connection_timeout=500", Options::default().with_connect_timeout(CONNECT_TIMEOUT)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("amqp10s://localhost:{}{query}", listener.local_addr().unwrap().port());
        // It takes a connection and never says anything.
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.read_to_end(&mut Vec::new()).expect("what it says until it gives up")
        });
        let begun = Env::system().now();
        let error = Amqp10::connect_with(&url, options).await.expect_err("silence");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(begun.elapsed() >= limit && begun.elapsed() < CONNECT_TIMEOUT);
        assert!(server.join().unwrap() > 0, "the client greets first");
    }
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    for broker in brokers() {
        let transport = connect(&broker.external(), broker.showing("client")).await;
        pass_a_message(&transport).await;
        transport.close(Duration::from_secs(5)).await.expect("closing");
        refused(&broker.external(), broker.trusting(), ErrorKind::Unauthorized, "EXTERNAL").await;
        let why = "the broker refuses the client certificate";
        let stranger = broker.showing("stranger");
        refused(&broker.external(), stranger, ErrorKind::Unauthorized, why).await;
    }
}

#[tokio::test]
async fn credentials_are_checked_and_anybody_is_a_guest() {
    for broker in brokers() {
        let (_, host) = broker.url.rsplit_once('@').expect("a URL with credentials");
        let anonymous = format!("amqp10s://{host}?auth_mechanism=anonymous");
        let transport = connect(&anonymous, broker.trusting()).await;
        pass_a_message(&transport).await;
        transport.close(Duration::from_secs(5)).await.expect("closing");
        let wrong = format!("amqp10s://guest:wrong@{host}");
        let why = "the broker refuses the credentials";
        refused(&wrong, broker.trusting(), ErrorKind::Unauthorized, why).await;
    }
}

#[tokio::test]
async fn a_key_must_be_that_of_the_certificate() {
    for broker in brokers() {
        let mixed =
            broker.trusting().with_identity(broker.file("client.pem"), broker.file("ca.key"));
        let why = "the client certificate and its key cannot be used";
        refused(&broker.url, mixed, ErrorKind::Invalid, why).await;
        let swapped =
            broker.trusting().with_identity(broker.file("client.key"), broker.file("client.pem"));
        let why = "the PEM of the client certificate holds no certificate";
        refused(&broker.url, swapped, ErrorKind::Invalid, why).await;
    }
}

#[tokio::test]
async fn a_lost_connection_comes_back_encrypted() {
    for broker in brokers() {
        let management = Management::new(&variable("POSTRIDER_AMQP_MANAGEMENT_URL", broker.suffix));
        let user = format!("test-tls-{}", Env::system().new_id());
        management.make_user(&user).await.expect("a user");
        let (_, host) = broker.url.rsplit_once('@').expect("a URL with credentials");
        let url = format!("amqp10s://{user}:{user}@{host}");
        let connected = Amqp10::connect_with(&url, options(broker.trusting())).await;
        let transport = connected.expect("connected");
        let mut events = transport.events();
        management.close_all(&user).await.expect("closing the connections");
        let restored = async {
            while let Some(event) = events.next().await {
                if matches!(event, TransportEvent::Restored { .. }) {
                    return;
                }
            }
            panic!("the events ended");
        };
        tokio::time::timeout(Duration::from_secs(60), restored).await.expect("restored in time");
        pass_a_message(&transport).await;
        transport.close(Duration::from_secs(5)).await.expect("closing");
        management.remove_user(&user).await.expect("the user goes");
    }
}
