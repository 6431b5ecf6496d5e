//! Who gets through the broker's door. The same four callers knock at our own broker and, where
//! it is installed, at Debian's mosquitto.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use helio_bridge::broker::Broker;
use helio_bridge::pki::{Demo, Files};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

fn certificates() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = Demo::new().expect("certificates");
    demo.write(dir.path()).expect("written");
    dir
}

async fn our_broker(dir: &Path) -> SocketAddr {
    let credentials = Files::of(dir, "broker").load().expect("loaded");
    let broker = Broker::bind(([127, 0, 0, 1], 0).into(), &credentials).await;
    let broker = broker.expect("a port");
    let addr = broker.local_addr().expect("an address");
    tokio::spawn(broker.run());
    addr
}

struct Mosquitto(Child);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `None` where it is not installed.
async fn mosquitto(dir: &Path) -> Option<(Mosquitto, SocketAddr)> {
    let addr = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let addr = addr.expect("a free port");
    let files = Files::of(dir, "broker");
    let config = dir.join("mosquitto.conf");
    let text = format!(
        "listener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\ntls_version tlsv1.3\n\
         require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n\
         user root\n",
        addr.port(),
        files.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    std::fs::write(&config, text).expect("written");
    let child = Command::new("mosquitto")
        .arg("-c")
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let child = Mosquitto(child);
    while TcpStream::connect(addr).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    Some((child, addr))
}

/// Trusts the authority in `dir`; shows the certificate of `shows`.
fn caller(
    dir: &Path,
    shows: Option<&Files>,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(dir.join("ca.pem")).expect("a certificate");
    roots.add(ca).expect("a good one");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots);
    match shows {
        None => config.with_no_client_auth(),
        Some(files) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&files.cert).expect("a certificate")],
                PrivateKeyDer::from_pem_file(&files.key).expect("a key"),
            )
            .expect("a pair"),
    }
}

/// Whether CONNECT of MQTT 5 is answered by CONNACK with success; else why not.
async fn knock(addr: SocketAddr, config: ClientConfig) -> Result<(), String> {
    const CONNECT: &[u8] = b"\x10\x11\0\x04MQTT\x05\x02\0\x1e\0\0\x04test";
    let talk = async {
        let stream = TcpStream::connect(addr).await?;
        let name = "localhost".try_into().expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        stream.write_all(CONNECT).await?;
        // CONNACK, length, no session, success.
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(Duration::from_secs(20), talk).await {
        Ok(Ok([0x20, _, 0, 0])) => Ok(()),
        Ok(Ok(other)) => Err(format!("answered {other:02x?}")),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("not answered".into()),
    }
}

async fn only_tls_1_3_with_our_certificate_passes(dir: &Path, addr: SocketAddr) {
    let foreign = certificates();
    let (own, foreign) = (
        Files::of(dir, "bridge"),
        Files::of(foreign.path(), "bridge"),
    );

    let good = knock(addr, caller(dir, Some(&own), &TLS13)).await;
    assert_eq!(good, Ok(()));

    let refused = |config| async move { knock(addr, config).await.expect_err("let in") };
    let why = refused(caller(dir, Some(&own), &TLS12)).await;
    assert!(why.contains("ProtocolVersion"), "TLS 1.2: {why}");
    let why = refused(caller(dir, None, &TLS13)).await;
    assert!(why.contains("CertificateRequired"), "no certificate: {why}");
    let why = refused(caller(dir, Some(&foreign), &TLS13)).await;
    assert!(
        why.contains("UnknownCA") || why.contains("DecryptError") || why.contains("BadCertificate"),
        "a foreign certificate: {why}"
    );
    // The broker's own certificate is for serving, not for calling.
    let why = refused(caller(dir, Some(&Files::of(dir, "broker")), &TLS13)).await;
    assert!(why.contains("ertificate"), "a server's certificate: {why}");
}

#[tokio::test]
async fn our_broker_lets_in_tls_1_3_with_our_certificate_and_nothing_else() {
    let dir = certificates();
    let addr = our_broker(dir.path()).await;
    only_tls_1_3_with_our_certificate_passes(dir.path(), addr).await;
}

#[tokio::test]
async fn mosquitto_lets_in_tls_1_3_with_our_certificate_and_nothing_else() {
    let dir = certificates();
    let Some((_running, addr)) = mosquitto(dir.path()).await else {
        eprintln!("skipped: mosquitto is not installed");
        return;
    };
    only_tls_1_3_with_our_certificate_passes(dir.path(), addr).await;
}

#[tokio::test]
async fn a_broker_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (certificates(), certificates());
    let addr = our_broker(theirs.path()).await;
    let own = Files::of(ours.path(), "bridge");
    let why = knock(addr, caller(ours.path(), Some(&own), &TLS13)).await;
    let why = why.expect_err("trusted");
    assert!(
        why.contains("UnknownIssuer") || why.contains("BadSignature"),
        "{why}"
    );
}
