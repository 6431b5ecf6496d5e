//! The master's passage from its clients to its slaves: which slave is being asked by whom, and
//! what to answer when it has answered or stays silent.
//!
//! A [`group 64 tunnel`](crate::heliograph::TUNNEL) request goes in through
//! [`SlaveTunnel::handle_request`], which says what to send over the bus; what comes back goes in
//! through [`SlaveTunnel::handle_answer`], time through [`SlaveTunnel::handle_timeout`]. Both
//! write the answer for the client, who is known by a ticket of the caller's choice.
//!
//! ```text
//!            request: Forward           answer to it: datagram for the client
//! seat free -----------------> waiting ---------------------------------------> seat free
//!                              |  ^  |   deadline, node left: NoAnswer, NoSuchNode
//!   another request: Busy      '--'  '----------------------------------------> seat free
//!   an answer to an earlier one is dropped
//! ```

use heapless::Vec;
use helio_units::{Duration, Instant, NodeId};

use crate::heliograph::{Fault, Tunnelled};
use crate::{Header, Reply, Request, split};

/// Up to `N` slaves asked at once, each by one client.
pub struct SlaveTunnel<const N: usize> {
    waiting: Vec<Waiting, N>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    ticket: u32,
    node: NodeId,
    /// Header of the client's own request, for the answer.
    outer: Header,
    /// Header that the slave's answer must have, but for its length and flags.
    inner: Header,
    deadline: Instant,
}

/// What to send to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward<'a> {
    /// The slave.
    pub node: NodeId,
    /// As the client wrote it.
    pub datagram: &'a [u8],
}

/// An answer that is due, written to the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Who asked.
    pub ticket: u32,
    /// Octets of the answer.
    pub length: usize,
}

impl<const N: usize> Default for SlaveTunnel<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> SlaveTunnel<N> {
    /// Nobody is asked.
    pub const fn new() -> Self {
        Self {
            waiting: Vec::new(),
        }
    }

    /// A client asks. The caller sends the datagram over the bus and answers later, or answers
    /// the fault now; if the bus does not take the datagram, it calls [`Self::withdraw`] and
    /// answers [`Fault::Busy`]. Whether the slave is there is the caller's to know.
    pub fn handle_request<'a>(
        &mut self,
        now: Instant,
        ticket: u32,
        request: &Request<'a>,
    ) -> Result<Forward<'a>, Fault> {
        let tunnelled = Tunnelled::parse(request)?;
        let Ok((asked, _)) = split(tunnelled.datagram) else {
            return Err(Fault::Malformed);
        };
        if asked.op == asked.reply().op {
            return Err(Fault::Malformed);
        }
        let node = tunnelled.node;
        if self.waiting.iter().any(|w| w.node == node) {
            return Err(Fault::Busy);
        }
        let waiting = Waiting {
            ticket,
            node,
            outer: request.header,
            inner: asked.reply(),
            deadline: now + Duration::from_millis(tunnelled.timeout_ms.into()),
        };
        self.waiting.push(waiting).map_err(|_| Fault::Busy)?;
        Ok(Forward {
            node,
            datagram: tunnelled.datagram,
        })
    }

    /// A slave answers. `None` when nobody waits for this: it came too late.
    pub fn handle_answer(&mut self, node: NodeId, datagram: &[u8], out: &mut [u8]) -> Option<Due> {
        let (header, _) = split(datagram).ok()?;
        let waiting = self.take(|w| {
            w.node == node
                && Header {
                    length: w.inner.length,
                    flags: w.inner.flags,
                    version: w.inner.version,
                    ..header
                } == w.inner
        })?;
        let reply = |r: Reply<'_>| r.body(|e| e.map(1)?.str("d")?.bytes(datagram)?.ok());
        Some(waiting.answer(out, reply))
    }

    /// A slave has left the bus: whoever waits for it is told. Call until `None`.
    pub fn handle_left(&mut self, node: NodeId, out: &mut [u8]) -> Option<Due> {
        let waiting = self.take(|w| w.node == node)?;
        Some(waiting.answer(out, |r| r.fault(Fault::NoSuchNode)))
    }

    /// Tells one client whose time is over. Call until `None`; early calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut [u8]) -> Option<Due> {
        let waiting = self.take(|w| now >= w.deadline)?;
        Some(waiting.answer(out, |r| r.fault(Fault::NoAnswer)))
    }

    /// Whether an answer under this ticket is still to come.
    pub fn is_waiting(&self, ticket: u32) -> bool {
        self.waiting.iter().any(|w| w.ticket == ticket)
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.iter().map(|w| w.deadline).min()
    }

    /// The datagram for this slave could not be sent: nobody waits for it any more.
    pub fn withdraw(&mut self, node: NodeId) {
        self.take(|w| w.node == node);
    }

    fn take(&mut self, which: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let place = self.waiting.iter().position(which)?;
        Some(self.waiting.swap_remove(place))
    }
}

impl Waiting {
    fn answer(&self, out: &mut [u8], write: impl FnOnce(Reply<'_>) -> usize) -> Due {
        let header = self.outer.reply();
        Due {
            ticket: self.ticket,
            length: write(Reply { header, out }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heliograph::{GROUP, MAX_TUNNELLED, TUNNEL};
    use crate::{MAX_DATAGRAM, Op, Version, accept};
    extern crate std;
    use std::vec::Vec;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).unwrap()
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn header(op: Op, group: u16, seq: u8, id: u8) -> Header {
        Header {
            op,
            version: Version::V2,
            flags: 0,
            length: 0,
            group,
            seq,
            id,
        }
    }

    /// An echo request or its answer, sequence number 9 unless said.
    fn echo(op: Op, seq: u8) -> Vec<u8> {
        let mut out = [0; 64];
        let header = header(op, 0, seq, 0);
        let n = Reply {
            header,
            out: &mut out,
        }
        .body(|e| e.map(1)?.str("d")?.str("hi")?.ok());
        out[..n].to_vec()
    }

    /// A tunnel request for `node`, with 100 ms of patience.
    fn ask(node: u64, inner: &[u8]) -> Vec<u8> {
        let mut out = [0; MAX_DATAGRAM];
        let header = header(Op::Write, GROUP, 77, TUNNEL);
        let n = Reply {
            header,
            out: &mut out,
        }
        .body(|e| {
            e.map(3)?.str("node")?.u64(node)?.str("timeout_ms")?;
            e.u8(100)?.str("d")?.bytes(inner)?.ok()
        });
        out[..n].to_vec()
    }

    fn request<const N: usize>(
        tunnel: &mut SlaveTunnel<N>,
        now: Instant,
        ticket: u32,
        datagram: &[u8],
    ) -> Result<NodeId, Fault> {
        let request = accept(datagram, &mut []).unwrap();
        let forward = tunnel.handle_request(now, ticket, &request)?;
        assert!(datagram.ends_with(forward.datagram));
        Ok(forward.node)
    }

    /// Body of the client's answer, whose header must be that of its request.
    fn body(out: &[u8], due: Due) -> &[u8] {
        let (got, body) = split(&out[..due.length]).unwrap();
        let mut expected = header(Op::WriteReply, GROUP, 77, TUNNEL);
        expected.length = got.length;
        assert_eq!(got, expected);
        body
    }

    #[test]
    fn an_answer_reaches_the_client_who_asked() {
        let mut tunnel = SlaveTunnel::<4>::new();
        let mut out = [0; MAX_DATAGRAM];
        for n in 1..=4 {
            let asked = request(&mut tunnel, at(0), n, &ask(n.into(), &echo(Op::Write, 9)));
            assert_eq!(asked, Ok(node(n as u8)));
        }
        let answer = echo(Op::WriteReply, 9);
        for n in [3, 1, 4, 2] {
            let due = tunnel.handle_answer(node(n), &answer, &mut out).unwrap();
            assert_eq!(due.ticket, n.into());
            let body = body(&out, due);
            assert!(body.starts_with(b"\xa1\x61d") && body.ends_with(&answer));
        }
        assert_eq!(tunnel.poll_timeout(), None);
    }

    #[test]
    fn a_silent_slave_is_reported_at_the_deadline_and_not_before() {
        let mut tunnel = SlaveTunnel::<4>::new();
        let mut out = [0; MAX_DATAGRAM];
        request(&mut tunnel, at(50), 7, &ask(3, &echo(Op::Write, 9))).unwrap();
        request(&mut tunnel, at(20), 8, &ask(4, &echo(Op::Write, 9))).unwrap();
        assert_eq!(tunnel.poll_timeout(), Some(at(120)));
        assert_eq!(tunnel.handle_timeout(at(119), &mut out), None);
        let due = tunnel.handle_timeout(at(120), &mut out).unwrap();
        assert_eq!(due.ticket, 8);
        assert!(tunnel.is_waiting(7) && !tunnel.is_waiting(8));
        assert_eq!(
            body(&out, due),
            b"\xa1\x63err\xa2\x65group\x18\x40\x62rc\x06"
        );
        assert_eq!(tunnel.handle_timeout(at(120), &mut out), None);
        assert_eq!(tunnel.poll_timeout(), Some(at(150)));
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let mut tunnel = SlaveTunnel::<4>::new();
        let mut out = [0; MAX_DATAGRAM];
        request(&mut tunnel, at(0), 1, &ask(3, &echo(Op::Write, 9))).unwrap();
        tunnel.handle_timeout(at(100), &mut out).unwrap();
        request(&mut tunnel, at(100), 2, &ask(3, &echo(Op::Write, 10))).unwrap();
        for stranger in [
            echo(Op::WriteReply, 9),
            echo(Op::ReadReply, 10),
            echo(Op::Write, 10),
            echo(Op::WriteReply, 10)[..9].to_vec(),
        ] {
            assert_eq!(tunnel.handle_answer(node(3), &stranger, &mut out), None);
        }
        let right = echo(Op::WriteReply, 10);
        assert_eq!(tunnel.handle_answer(node(4), &right, &mut out), None);
        let due = tunnel.handle_answer(node(3), &right, &mut out).unwrap();
        assert_eq!(due.ticket, 2);
    }

    #[test]
    fn a_slave_is_asked_by_one_client_at_a_time() {
        let mut tunnel = SlaveTunnel::<2>::new();
        let mut out = [0; MAX_DATAGRAM];
        let inner = echo(Op::Write, 9);
        assert_eq!(request(&mut tunnel, at(0), 1, &ask(3, &inner)), Ok(node(3)));
        assert_eq!(
            request(&mut tunnel, at(0), 2, &ask(3, &inner)),
            Err(Fault::Busy)
        );
        assert_eq!(request(&mut tunnel, at(0), 3, &ask(4, &inner)), Ok(node(4)));
        assert_eq!(
            request(&mut tunnel, at(0), 4, &ask(5, &inner)),
            Err(Fault::Busy)
        );
        tunnel.withdraw(node(4));
        assert_eq!(request(&mut tunnel, at(0), 5, &ask(5, &inner)), Ok(node(5)));
        let due = tunnel.handle_left(node(3), &mut out).unwrap();
        assert_eq!(due.ticket, 1);
        assert_eq!(
            body(&out, due),
            b"\xa1\x63err\xa2\x65group\x18\x40\x62rc\x02"
        );
        assert_eq!(tunnel.handle_left(node(3), &mut out), None);
        assert_eq!(request(&mut tunnel, at(0), 6, &ask(3, &inner)), Ok(node(3)));
    }

    #[test]
    fn only_a_request_for_a_seat_goes_through() {
        let mut tunnel = SlaveTunnel::<2>::new();
        let inner = echo(Op::Write, 9);
        let mut refused = |datagram: &[u8]| request(&mut tunnel, at(0), 1, datagram).unwrap_err();
        for seat in [0, 128, 256 + 3, u64::MAX] {
            assert_eq!(refused(&ask(seat, &inner)), Fault::NoSuchNode);
        }
        assert_eq!(refused(&ask(3, &echo(Op::WriteReply, 9))), Fault::Malformed);
        assert_eq!(refused(&ask(3, &inner[..10])), Fault::Malformed);
        assert_eq!(refused(&ask(3, &[])), Fault::Malformed);
        assert_eq!(refused(&ask(3, &[0; MAX_TUNNELLED + 1])), Fault::OutOfRange);
        assert_eq!(tunnel.poll_timeout(), None);
    }
}
