//! Group 64, this project's own: numbers that server and clients share. `docs/northbound.md` has
//! the bodies.

use helio_units::NodeId;

use crate::{MAX_DATAGRAM, Malformed, Rc, Reply, Request, read_map};

/// The group.
pub const GROUP: u16 = 64;
/// Read: state of the master and of its nodes.
pub const STATUS: u8 = 0;
/// Read: records since a sequence number.
pub const TELEMETRY: u8 = 1;
/// Read, write: anchors.
pub const MAP: u8 = 2;
/// Write: orders.
pub const COMMAND: u8 = 3;
/// Write: a datagram for a slave, whose answer comes back.
pub const TUNNEL: u8 = 4;

/// Longest datagram to or from a slave, header included: what is left of [`MAX_DATAGRAM`] with
/// the tunnel's own header and map around it. A slave gives it as its `buf_size`.
pub const MAX_TUNNELLED: usize = MAX_DATAGRAM - 64;

/// How long a master waits for a slave's answer when the request does not say, in milliseconds.
pub const TUNNEL_TIMEOUT_MS: u32 = 1_000;
/// Longest time that a request may ask for, in milliseconds; erasing a flash slot takes seconds.
pub const MAX_TUNNEL_TIMEOUT_MS: u32 = 60_000;

/// Return codes of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Fault {
    /// Anything without a better code.
    Unknown = 1,
    /// No such node, or it is not a member now.
    NoSuchNode = 2,
    /// A value is out of range.
    OutOfRange = 3,
    /// Not in this state.
    NotNow = 4,
    /// The body is not what the command takes.
    Malformed = 5,
    /// The node did not answer in time.
    NoAnswer = 6,
    /// Another request to this node is under way; ask again later.
    Busy = 7,
}

impl Fault {
    /// Every code.
    pub const ALL: [Self; 7] = [
        Self::Unknown,
        Self::NoSuchNode,
        Self::OutOfRange,
        Self::NotNow,
        Self::Malformed,
        Self::NoAnswer,
        Self::Busy,
    ];

    /// What version 1 says instead.
    pub const fn v1(self) -> Rc {
        match self {
            Self::Unknown => Rc::Unknown,
            Self::NoSuchNode => Rc::NoEntry,
            Self::OutOfRange | Self::Malformed => Rc::Invalid,
            Self::NotNow => Rc::BadState,
            Self::NoAnswer => Rc::Timeout,
            Self::Busy => Rc::Busy,
        }
    }
}

impl Reply<'_> {
    /// An error of group 64.
    pub fn fault(self, fault: Fault) -> usize {
        self.error(fault as u16, fault.v1())
    }
}

/// A datagram on its way to a slave: the body of a [`TUNNEL`] request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnelled<'a> {
    /// The slave's seat.
    pub node: NodeId,
    /// How long to wait for its answer, at most [`MAX_TUNNEL_TIMEOUT_MS`].
    pub timeout_ms: u32,
    /// The request, header included; at most [`MAX_TUNNELLED`] octets.
    pub datagram: &'a [u8],
}

impl<'a> Tunnelled<'a> {
    /// Reads the body, or says what to answer.
    pub fn parse(request: &Request<'a>) -> Result<Self, Fault> {
        let (mut node, mut datagram, mut timeout_ms) = (None, None, TUNNEL_TIMEOUT_MS);
        read_map(request.body, |key, d| {
            match key {
                "node" => node = Some(d.u64()?),
                "d" => datagram = Some(d.bytes()?),
                "timeout_ms" => timeout_ms = d.u32()?,
                _ => d.skip()?,
            }
            Ok(())
        })
        .map_err(|Malformed| Fault::Malformed)?;
        let (Some(node), Some(datagram)) = (node, datagram) else {
            return Err(Fault::Malformed);
        };
        if datagram.len() > MAX_TUNNELLED || timeout_ms > MAX_TUNNEL_TIMEOUT_MS {
            return Err(Fault::OutOfRange);
        }
        Ok(Self {
            node: u8::try_from(node)
                .ok()
                .and_then(NodeId::new)
                .ok_or(Fault::NoSuchNode)?,
            timeout_ms,
            datagram,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, Op, Version, accept};

    #[test]
    fn the_largest_tunnelled_datagram_fits_both_ways() {
        let header = Header {
            op: Op::Write,
            version: Version::V2,
            flags: 0,
            length: 0,
            group: GROUP,
            seq: 1,
            id: TUNNEL,
        };
        let inner = [0xa5; MAX_TUNNELLED];
        let mut bytes = [0; MAX_DATAGRAM];
        let n = Reply {
            header,
            out: &mut bytes,
        }
        .body(|e| {
            e.map(3)?.str("node")?.u8(127)?.str("timeout_ms")?;
            e.u32(MAX_TUNNEL_TIMEOUT_MS)?.str("d")?.bytes(&inner)?.ok()
        });
        let mut out = [0; MAX_DATAGRAM];
        let request = accept(&bytes[..n], &mut out).unwrap();
        let tunnelled = Tunnelled::parse(&request).unwrap();
        assert_eq!(
            tunnelled,
            Tunnelled {
                node: NodeId::MAX,
                timeout_ms: MAX_TUNNEL_TIMEOUT_MS,
                datagram: &inner
            }
        );
        let reply = request.reply(&mut out);
        let n = reply.body(|e| e.map(1)?.str("d")?.bytes(&inner)?.ok());
        assert!(n > MAX_TUNNELLED, "{n}");
    }

    #[test]
    fn a_tunnel_request_without_node_or_datagram_is_malformed() {
        for body in [
            &[][..],
            &[0xa0],
            &[0xa1, 0x64, b'n', b'o', b'd', b'e', 3],
            &[0xa1, 0x61, b'd', 0x40],
            &[0x80],
        ] {
            let request = Request {
                header: Header {
                    op: Op::Write,
                    version: Version::V2,
                    flags: 0,
                    length: body.len() as u16,
                    group: GROUP,
                    seq: 1,
                    id: TUNNEL,
                },
                body,
            };
            assert_eq!(Tunnelled::parse(&request), Err(Fault::Malformed));
        }
    }
}
