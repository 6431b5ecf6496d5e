//! The asking side: one request at a time, sent again until it is answered.
//!
//! ```text
//!        send                    answer with our sequence number
//! idle --------> waiting ----------------------------------------> done
//!                 |   ^
//!         timeout '---' send again, `tries` times in all
//! ```
//!
//! A request that is sent again has the same sequence number, so an answer that was only late
//! still counts. A master may thus carry out a command twice; all commands allow that.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use helio_smp::heliograph::{self as group, Fault};
use helio_smp::serial::Decoder;
use helio_smp::{Header, MAX_DATAGRAM, Op, Version, split, standard};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{ToSocketAddrs, UdpSocket, lookup_host};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::server::to_lines;
use crate::types::{Anchor, Command, Map, Parameters, Status, Telemetry};

/// Anchors in one piece of a map that is written: 28 octets each at most.
const ANCHORS_PER_PIECE: usize = 64;

/// Talks to one master, or through it to one slave. Clones share the line and take turns.
#[derive(Clone)]
pub struct Client {
    line: Arc<Mutex<Line>>,
    peer: Arc<str>,
    timeout: Duration,
    tries: u32,
}

struct Line {
    transport: Transport,
    seq: u8,
}

enum Transport {
    Udp(UdpSocket),
    Serial {
        port: Box<dyn Port>,
        decoder: Box<Decoder<MAX_DATAGRAM>>,
    },
    Tunnel {
        master: Client,
        node: u8,
    },
}

trait Port: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Port for T {}

/// Why there is no answer to work with.
#[derive(Debug)]
pub enum AskError {
    /// Nobody answered: look at the address and at the peer.
    Timeout {
        /// Whom we asked.
        peer: String,
        /// How often.
        tries: u32,
        /// How long each time.
        timeout: Duration,
    },
    /// The peer refused, with a code of SMP itself.
    Rc(u64),
    /// The peer refused, with a code of the request's group.
    Group {
        /// Which group.
        group: u64,
        /// Its code.
        rc: u64,
    },
    /// The answer is not what the command gives: the peer speaks another version of it.
    Malformed(String),
    /// The request does not fit a datagram: ask for less at once.
    TooLong(usize),
    /// The line itself failed: open it again.
    Io(String, io::Error),
}

impl AskError {
    /// Whether the peer refused with this code of group 64.
    pub fn is(&self, fault: Fault) -> bool {
        matches!(self, Self::Group { group, rc }
            if *group == u64::from(group::GROUP) && *rc == fault as u64)
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout {
                peer,
                tries,
                timeout,
            } => write!(
                f,
                "{peer} did not answer {tries} requests of {timeout:?} each; \
                 is it running, and is this its address?"
            ),
            Self::Rc(rc) => match rc_text(*rc) {
                Some(text) => write!(f, "request refused: {text} (SMP code {rc})"),
                None => write!(f, "request refused with SMP code {rc}"),
            },
            Self::Group { group, rc } => {
                let known = Fault::ALL.into_iter().find(|f| *f as u64 == *rc);
                match known.filter(|_| *group == u64::from(group::GROUP)) {
                    Some(fault) => write!(f, "request refused: {}", fault_text(fault)),
                    None => write!(f, "request refused with code {rc} of group {group}"),
                }
            }
            Self::Malformed(why) => write!(f, "answer not understood: {why}"),
            Self::TooLong(n) => write!(
                f,
                "the request has {n} octets, but a datagram holds {MAX_DATAGRAM}"
            ),
            Self::Io(peer, error) => write!(f, "{peer}: {error}"),
        }
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            _ => None,
        }
    }
}

fn fault_text(fault: Fault) -> &'static str {
    match fault {
        Fault::Unknown => "unknown error",
        Fault::NoSuchNode => "no such node",
        Fault::OutOfRange => "a value is out of range",
        Fault::NotNow => "not allowed in the present state",
        Fault::Malformed => "malformed request",
        Fault::NoAnswer => "the node did not answer in time",
        Fault::Busy => "the node is busy with another request",
    }
}

/// Texts for the codes of `mcumgr_err_t`.
fn rc_text(rc: u64) -> Option<&'static str> {
    Some(match rc {
        1 => "unknown error",
        2 => "out of memory",
        3 => "a value is missing or invalid",
        4 => "it took too long",
        5 => "no such thing",
        6 => "not allowed in the present state",
        7 => "the answer would be too long",
        8 => "command not supported",
        9 => "the datagram was damaged",
        10 => "busy, ask again later",
        11 => "access denied",
        12 => "SMP version too old",
        13 => "SMP version too new",
        _ => return None,
    })
}

impl Client {
    /// Over UDP. Nothing is sent yet; see [`crate::PORT`].
    pub async fn connect_udp(address: impl ToSocketAddrs) -> io::Result<Self> {
        let address: SocketAddr = lookup_host(address)
            .await?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
        let any: SocketAddr = if address.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(Self::new(address.to_string(), Transport::Udp(socket)))
    }

    /// Over a serial line already open; `name` is for messages.
    pub fn over_serial<S>(name: &str, port: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let transport = Transport::Serial {
            port: Box::new(port),
            decoder: Box::default(),
        };
        Self::new(name.to_string(), transport)
    }

    /// To a slave of this master, which forwards the datagrams over its bus. Slaves answer the
    /// standard groups; of group 64 they have their own, which goes through [`Self::ask`].
    pub fn to_slave(&self, node: u8) -> Self {
        let peer = format!("slave {node} of {}", self.peer);
        let transport = Transport::Tunnel {
            master: self.clone(),
            node,
        };
        Self::new(peer, transport)
    }

    fn new(peer: String, transport: Transport) -> Self {
        Self {
            line: Arc::new(Mutex::new(Line { transport, seq: 0 })),
            peer: peer.into(),
            timeout: Duration::from_secs(1),
            tries: 3,
        }
    }

    /// How long to wait for an answer (1 s), and how often to ask (3 times). For a slave, the
    /// master gets this time to reach it.
    pub fn with_patience(mut self, timeout: Duration, tries: u32) -> Self {
        self.timeout = timeout;
        self.tries = tries.max(1);
        self
    }

    /// Whom this client talks to.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends text there and back.
    pub async fn echo(&self, text: &str) -> Result<String, AskError> {
        #[derive(Serialize)]
        struct Ask<'a> {
            d: &'a str,
        }
        #[derive(Deserialize)]
        struct Answer {
            r: String,
        }
        let answer: Answer = self
            .ask(Op::Write, standard::OS, 0, &Ask { d: text })
            .await?;
        Ok(answer.r)
    }

    /// What the server takes.
    pub async fn parameters(&self) -> Result<Parameters, AskError> {
        self.ask(Op::Read, standard::OS, 6, &Nothing {}).await
    }

    /// Names of the sets of counters.
    pub async fn stat_list(&self) -> Result<Vec<String>, AskError> {
        #[derive(Deserialize)]
        struct Answer {
            stat_list: Vec<String>,
        }
        let answer: Answer = self.ask(Op::Read, standard::STAT, 1, &Nothing {}).await?;
        Ok(answer.stat_list)
    }

    /// One set of counters.
    pub async fn stat_show(&self, name: &str) -> Result<BTreeMap<String, u64>, AskError> {
        #[derive(Serialize)]
        struct Ask<'a> {
            name: &'a str,
        }
        #[derive(Deserialize)]
        struct Answer {
            fields: BTreeMap<String, u64>,
        }
        let answer: Answer = self.ask(Op::Read, standard::STAT, 0, &Ask { name }).await?;
        Ok(answer.fields)
    }

    /// State of the master and all its nodes.
    pub async fn status(&self) -> Result<Status, AskError> {
        let mut status: Status = self
            .ours(Op::Read, group::STATUS, &Offset { off: 0 })
            .await?;
        while status.nodes.len() < status.total as usize {
            let off = status.nodes.len() as u32;
            let more: Status = self.ours(Op::Read, group::STATUS, &Offset { off }).await?;
            if more.nodes.is_empty() {
                break; // some have gone meanwhile
            }
            status.nodes.extend(more.nodes);
        }
        Ok(status)
    }

    /// Records from `since` on, at most `max` and what fits a datagram.
    pub async fn telemetry(&self, since: u64, max: u32) -> Result<Telemetry, AskError> {
        #[derive(Serialize)]
        struct Ask {
            since: u64,
            max: u32,
        }
        self.ours(Op::Read, group::TELEMETRY, &Ask { since, max })
            .await
    }

    /// The whole map; read anew, up to three times, if it changes meanwhile.
    pub async fn map(&self) -> Result<Map, AskError> {
        'whole: for _ in 0..3 {
            let mut map: Map = self.ours(Op::Read, group::MAP, &Offset { off: 0 }).await?;
            while map.anchors.len() < map.total as usize {
                let off = map.anchors.len() as u32;
                let more: Map = self.ours(Op::Read, group::MAP, &Offset { off }).await?;
                if (more.version, more.crc) != (map.version, map.crc) || more.anchors.is_empty() {
                    continue 'whole;
                }
                map.anchors.extend(more.anchors);
            }
            return Ok(map);
        }
        let why = "the pieces of the map do not make a whole".into();
        Err(AskError::Malformed(why))
    }

    /// Replaces the map; it takes effect when all of it has come.
    pub async fn map_write(&self, version: u32, anchors: &[Anchor]) -> Result<(), AskError> {
        self.map_pieces(version, anchors, false).await
    }

    /// Replaces the map in three steps: it is written and held, read back and compared, and only
    /// then put in force. Whatever fails leaves the master with the map it had.
    pub async fn map_replace(&self, version: u32, anchors: &[Anchor]) -> Result<(), AskError> {
        self.map_pieces(version, anchors, true).await?;
        let mut back: Vec<Anchor> = Vec::new();
        let crc = loop {
            #[derive(Serialize)]
            struct Ask {
                off: u32,
                staged: bool,
            }
            let ask = Ask {
                off: back.len() as u32,
                staged: true,
            };
            let piece: Map = self.ours(Op::Read, group::MAP, &ask).await?;
            let more = !piece.anchors.is_empty();
            back.extend(piece.anchors);
            if back.len() >= piece.total as usize || !more {
                break piece.crc;
            }
        };
        if back != anchors {
            let why = "the map that the master read back is not the one written".into();
            return Err(AskError::Malformed(why));
        }
        self.command(&Command::Map { crc }).await
    }

    async fn map_pieces(
        &self,
        version: u32,
        anchors: &[Anchor],
        hold: bool,
    ) -> Result<(), AskError> {
        #[derive(Serialize)]
        struct Ask<'a> {
            version: u32,
            total: usize,
            off: usize,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            hold: bool,
            anchors: &'a [Anchor],
        }
        let mut off = 0;
        loop {
            let end = anchors.len().min(off + ANCHORS_PER_PIECE);
            let ask = Ask {
                version,
                total: anchors.len(),
                off,
                hold,
                anchors: &anchors[off..end],
            };
            let next: Offset = self.ours(Op::Write, group::MAP, &ask).await?;
            if next.off as usize != end {
                let found = next.off;
                let why = format!("map written up to anchor {end}, but the master wants {found}");
                return Err(AskError::Malformed(why));
            }
            if end == anchors.len() {
                return Ok(());
            }
            off = end;
        }
    }

    /// Gives an order.
    pub async fn command(&self, command: &Command) -> Result<(), AskError> {
        let Nothing {} = self.ours(Op::Write, group::COMMAND, command).await?;
        Ok(())
    }

    async fn ours<A: DeserializeOwned>(
        &self,
        op: Op,
        id: u8,
        body: &impl Serialize,
    ) -> Result<A, AskError> {
        self.ask(op, group::GROUP, id, body).await
    }

    /// Any command: sends `body` as CBOR, gives the answer's.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        op: Op,
        group: u16,
        id: u8,
        body: &impl Serialize,
    ) -> Result<A, AskError> {
        let mut cbor = Vec::new();
        ciborium::into_writer(body, &mut cbor).map_err(|e| AskError::Malformed(e.to_string()))?;
        let answer = self.ask_raw(op, group, id, cbor).await?;
        ciborium::from_reader(&answer[..]).map_err(|e| AskError::Malformed(e.to_string()))
    }

    /// The body of the answer, once it is sure that it is no error. Boxed, because a slave's
    /// client asks through its master's.
    fn ask_raw(
        &self,
        op: Op,
        group: u16,
        id: u8,
        body: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, AskError>> + Send + '_>> {
        Box::pin(async move {
            let length = Header::SIZE + body.len();
            if length > MAX_DATAGRAM {
                return Err(AskError::TooLong(length));
            }
            let mut line = self.line.lock().await;
            line.seq = line.seq.wrapping_add(1);
            let header = Header {
                op,
                version: Version::V2,
                flags: 0,
                length: body.len() as u16,
                group,
                seq: line.seq,
                id,
            };
            let datagram = [&header.encode()[..], &body].concat();
            let answer = self
                .exchange(&mut line.transport, &datagram, &header)
                .await?;
            refusal(&answer)?;
            Ok(answer)
        })
    }

    /// Sends until answered; gives the answer's body.
    async fn exchange(
        &self,
        transport: &mut Transport,
        datagram: &[u8],
        header: &Header,
    ) -> Result<Vec<u8>, AskError> {
        for _ in 0..self.tries {
            let deadline = Instant::now() + self.timeout;
            match self.try_once(transport, datagram, header, deadline).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                // Nobody at the UDP port: the peer may be about to start.
                Err(AskError::Io(_, e)) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    sleep_until(deadline).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(AskError::Timeout {
            peer: self.peer.to_string(),
            tries: self.tries,
            timeout: self.timeout,
        })
    }

    async fn try_once(
        &self,
        transport: &mut Transport,
        datagram: &[u8],
        header: &Header,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, AskError> {
        let failed = |e| AskError::Io(self.peer.to_string(), e);
        match transport {
            Transport::Udp(socket) => {
                socket.send(datagram).await.map_err(failed)?;
                let mut buffer = vec![0; MAX_DATAGRAM];
                while let Ok(n) = timeout_at(deadline, socket.recv(&mut buffer)).await {
                    let n = n.map_err(failed)?;
                    if let Some(body) = matching(&buffer[..n], header) {
                        return Ok(Some(body.to_vec()));
                    }
                }
                Ok(None)
            }
            Transport::Serial { port, decoder } => {
                let all = async {
                    port.write_all(&to_lines(datagram)).await?;
                    port.flush().await?;
                    let mut buffer = [0; 512];
                    loop {
                        let n = port.read(&mut buffer).await?;
                        if n == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        for octet in &buffer[..n] {
                            if let Ok(Some(answer)) = decoder.handle_octet(*octet)
                                && let Some(body) = matching(answer, header)
                            {
                                return Ok(body.to_vec());
                            }
                        }
                    }
                };
                match timeout_at(deadline, all).await {
                    Ok(body) => body.map(Some).map_err(failed),
                    Err(_) => Ok(None),
                }
            }
            Transport::Tunnel { master, node } => {
                let timeout_ms = self.timeout.as_millis() as u64;
                let ask = Tunnelled {
                    node: *node,
                    timeout_ms: timeout_ms.min(group::MAX_TUNNEL_TIMEOUT_MS.into()),
                    d: Octets(datagram.to_vec()),
                };
                // The master answers when the slave has, so it gets the slave's time on top.
                let patient = master
                    .clone()
                    .with_patience(master.timeout + self.timeout, master.tries);
                match patient.ours(Op::Write, group::TUNNEL, &ask).await {
                    Ok(Untunnelled { d }) => Ok(matching(&d.0, header).map(<[u8]>::to_vec)),
                    Err(error) if error.is(Fault::NoAnswer) => Ok(None),
                    Err(error) if error.is(Fault::Busy) => {
                        sleep_until(deadline).await;
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// The body, if the datagram answers the request with this header.
fn matching<'a>(datagram: &'a [u8], asked: &Header) -> Option<&'a [u8]> {
    let (header, body) = split(datagram).ok()?;
    let expected = Header {
        length: header.length,
        flags: header.flags,
        version: header.version,
        ..asked.reply()
    };
    (header == expected).then_some(body)
}

/// Whether the answer is an error, in the shape of either version.
fn refusal(body: &[u8]) -> Result<(), AskError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        rc: u64,
        err: Option<Group>,
    }
    #[derive(Deserialize)]
    struct Group {
        group: u64,
        rc: u64,
    }
    let answer: Answer =
        ciborium::from_reader(body).map_err(|e| AskError::Malformed(e.to_string()))?;
    match answer {
        Answer { rc: 1.., .. } => Err(AskError::Rc(answer.rc)),
        Answer {
            err: Some(Group { group, rc }),
            ..
        } if rc != 0 => Err(AskError::Group { group, rc }),
        _ => Ok(()),
    }
}

#[derive(Serialize, Deserialize)]
struct Nothing {}

#[derive(Serialize, Deserialize)]
struct Offset {
    off: u32,
}

#[derive(Serialize)]
struct Tunnelled {
    node: u8,
    timeout_ms: u64,
    d: Octets,
}

#[derive(Deserialize)]
struct Untunnelled {
    d: Octets,
}

/// A CBOR byte string; serde would take a `Vec<u8>` for an array of numbers.
struct Octets(Vec<u8>);

impl Serialize for Octets {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match ciborium::Value::deserialize(d)? {
            ciborium::Value::Bytes(octets) => Ok(Self(octets)),
            _ => Err(serde::de::Error::custom("`d` is not a byte string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_a_peer_says_is_an_answer_or_an_error(
            start in vec(any::<u8>(), 0..9),
            body in vec(prop_oneof![
                any::<u8>(),
                prop::sample::select(b"\xa1\xa2\xbf\xff\x62\x63\x9f\xf6rcergoup".to_vec()),
            ], 0..40),
        ) {
            let datagram = [&start[..], &body].concat();
            let asked = Header {
                op: Op::Read,
                version: Version::V2,
                flags: 0,
                length: 0,
                group: 64,
                seq: 1,
                id: 1,
            };
            if let Some(body) = matching(&datagram, &asked) {
                prop_assert_eq!(datagram.len(), Header::SIZE + body.len());
            }
            let _ = refusal(&body);
        }
    }
}
