//! The demonstration's broker: `rumqttd` behind a door that opens to TLS 1.3 and a certificate.
//!
//! `rumqttd` by itself would accept TLS 1.2. So it listens in the clear on a port of the loopback,
//! and the door in front of it does the handshake and passes on what follows:
//!
//! ```text
//! client --TLS 1.3, both certificates--> door --CONNECT + password--> rumqttd
//!                                             <------ bytes ------->
//! ```
//!
//! The password is made at start and never leaves the process: another user of the same machine
//! who finds the loopback port cannot get in by it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rumqttd::{ConnectionSettings, RouterConfig, ServerSettings};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::mqtt::Session;
use crate::pki::{self, Credentials};

/// A handshake, and then a CONNECT, must be over after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many may be connected at once; one more waits.
const CONNECTIONS: usize = 128;
/// Longest CONNECT: client id and will.
const MAX_CONNECT: usize = 4 * 1024;
/// What `rumqttd` keeps per subscription: this many segments of this many bytes.
const SEGMENTS: usize = 4;
const SEGMENT_BYTES: usize = 512 * 1024;
const USER: &str = "door";

/// A broker that has its port and its certificate; [`Broker::run`] opens it.
pub struct Broker {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    password: String,
}

impl Broker {
    /// Takes the port. Port 0 takes any free one.
    pub async fn bind(listen: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "the broker cannot listen on {listen}; stop what uses that port or choose another"
            )
        })?;
        Ok(Self {
            listener,
            acceptor: TlsAcceptor::from(credentials.server()?),
            password: pki::secret()?,
        })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until the task is dropped or the inner broker fails. `rumqttd` has threads of its
    /// own that end with the process.
    pub async fn run(self) -> Result<()> {
        let inner = start_rumqttd(&self.password).await?;
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let password: Arc<str> = self.password.into();
        loop {
            let seat = seats.clone().acquire_owned().await?;
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of file descriptors, most likely: somebody must leave first.
                    tracing::warn!("the broker could not accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, password) = (self.acceptor.clone(), password.clone());
            tokio::spawn(async move {
                if let Err(e) = serve(stream, acceptor, inner, &password).await {
                    tracing::debug!("the broker let {peer} go: {e:#}");
                }
                drop(seat);
            });
        }
    }
}

/// Binds and runs.
pub async fn run(listen: SocketAddr, credentials: &Credentials) -> Result<()> {
    Broker::bind(listen, credentials).await?.run().await
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    inner: SocketAddr,
    password: &str,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut client = timeout(PATIENCE, acceptor.accept(stream))
        .await
        .context("no TLS handshake in time")?
        .context("refused in the TLS handshake")?;
    let connect = timeout(PATIENCE, read_packet(&mut client))
        .await
        .context("no CONNECT in time")??;
    let connect = with_login(&connect, USER, password)?;
    let mut broker = TcpStream::connect(inner).await?;
    broker.set_nodelay(true)?;
    broker.write_all(&connect).await?;
    tokio::io::copy_bidirectional(&mut client, &mut broker).await?;
    Ok(())
}

async fn read_packet(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut packet = vec![from.read_u8().await?];
    let mut length = 0usize;
    for shift in [0, 7, 14, 21] {
        let byte = from.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
        ensure!(shift < 21, "the first packet has no length");
    }
    ensure!(length <= MAX_CONNECT, "the first packet is too long");
    let header = packet.len();
    packet.resize(header + length, 0);
    if let Some(body) = packet.get_mut(header..) {
        from.read_exact(body).await?;
    }
    Ok(packet)
}

/// A CONNECT of MQTT 5 with user name and password added at its end, where they belong
/// (MQTT 5.0, 3.1.3: client id, will, user name, password).
fn with_login(connect: &[u8], user: &str, password: &str) -> Result<Vec<u8>> {
    let Some((0x10, rest)) = connect.split_first().map(|(first, rest)| (*first, rest)) else {
        bail!("the first packet is not CONNECT");
    };
    let length = rest
        .iter()
        .position(|b| b & 0x80 == 0)
        .context("no length")?
        + 1;
    let body = rest.get(length..).context("no body")?;
    let Some([0, 4, b'M', b'Q', b'T', b'T', 5, flags, ..]) = body.get(..8) else {
        bail!("the first packet is not CONNECT of MQTT 5");
    };
    ensure!(
        flags & 0xc0 == 0,
        "the certificate is the login; send no user name or password"
    );

    let mut body = body.to_vec();
    body[7] = flags | 0xc0;
    for text in [user, password] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    let mut packet = vec![0x10];
    let mut left = body.len();
    loop {
        let byte = (left & 0x7f) as u8;
        left >>= 7;
        packet.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    packet.append(&mut body);
    Ok(packet)
}

/// Starts `rumqttd` and comes back when it listens.
async fn start_rumqttd(password: &str) -> Result<SocketAddr> {
    // It can be told a port but cannot tell one, so a free one is looked for; should somebody
    // else take it in the meantime, its threads end at once and the next port is tried.
    for _ in 0..5 {
        let addr = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut broker = rumqttd::Broker::new(rumqttd_config(addr, password));
        let thread =
            std::thread::Builder::new()
                .name("rumqttd".into())
                .spawn(move || match broker.start() {
                    Ok(()) => {}
                    Err(e) => tracing::error!("the inner broker failed: {e}"),
                })?;
        for _ in 0..200 {
            if thread.is_finished() {
                break;
            }
            if TcpStream::connect(addr).await.is_ok() {
                return Ok(addr);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    bail!("the inner broker did not start; no port of 127.0.0.1 is free")
}

fn rumqttd_config(listen: SocketAddr, password: &str) -> rumqttd::Config {
    let server = ServerSettings {
        name: "inner".into(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: Session::MAX_PACKET,
            max_inflight_count: 200,
            auth: Some(HashMap::from([(USER.into(), password.into())])),
            external_auth: None,
            dynamic_filters: false,
        },
    };
    rumqttd::Config {
        router: RouterConfig {
            max_connections: CONNECTIONS + 1,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("v5".into(), server)])),
        ..rumqttd::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CONNECT of MQTT 5: clean start, keep alive 30 s, no properties, client id of `id` bytes.
    fn connect(id: usize) -> Vec<u8> {
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 30, 0];
        body.extend((id as u16).to_be_bytes());
        body.extend(vec![b'c'; id]);
        let mut packet = vec![0x10];
        if body.len() > 127 {
            packet.extend([(body.len() % 128) as u8 | 0x80, (body.len() / 128) as u8]);
        } else {
            packet.push(body.len() as u8);
        }
        packet.extend(body);
        packet
    }

    #[test]
    fn the_login_stands_at_the_end_of_connect() {
        // At 100 the length's second byte is born, at 200 it was there already.
        for id in [1, 100, 200] {
            let before = connect(id);
            let after = with_login(&before, "u", "pw").expect("a good packet");
            let header = if after.len() > 129 { 3 } else { 2 };
            assert_eq!(after[header + 7], 0xc2);
            assert!(after.ends_with(b"\0\x01u\0\x02pw"));
            let length = match header {
                2 => usize::from(after[1]),
                _ => usize::from(after[1] & 0x7f) + 128 * usize::from(after[2]),
            };
            assert_eq!(length, after.len() - header);
        }
    }

    #[test]
    fn what_is_not_a_bare_connect_of_mqtt_5_is_refused() {
        let good = connect(1);
        for (at, byte) in [(0, 0x30), (6, b'X'), (8, 4), (9, 0x82)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(with_login(&bad, "u", "p").is_err(), "byte {at} = {byte}");
        }
        for end in 0..10 {
            assert!(with_login(&good[..end], "u", "p").is_err(), "{end} bytes");
        }
    }

    #[tokio::test]
    async fn the_inner_port_is_shut_to_who_does_not_know_the_password() {
        let inner = start_rumqttd("right").await.expect("started");
        for (login, welcome) in [(None, false), (Some("wrong"), false), (Some("right"), true)] {
            let bare = connect(4);
            let packet = login.map_or(bare.clone(), |password| {
                with_login(&bare, USER, password).expect("a good packet")
            });
            let mut stream = TcpStream::connect(inner).await.expect("open");
            stream.write_all(&packet).await.expect("written");
            let answered = matches!(stream.read_u8().await, Ok(0x20));
            assert_eq!(answered, welcome, "{login:?}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_one_sentence_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a folder");
        pki::Demo::new()
            .expect("made")
            .write(dir.path())
            .expect("written");
        let credentials = pki::Files::of(dir.path(), "broker").load().expect("loaded");
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = taken.local_addr().expect("an address");
        let error = match Broker::bind(addr, &credentials).await {
            Ok(_) => panic!("the port was taken"),
            Err(e) => e.to_string(),
        };
        assert!(
            error.contains(&addr.to_string()) && error.contains("choose another"),
            "{error}"
        );
    }
}
