//! The way to a slave for `mcumgr-toolkit`: its datagrams ride in our group's tunnel command to
//! the master, which carries them over the bus (`docs/northbound.md`).

use std::error::Error;
use std::fmt;
use std::time::Duration;

use helio_smp::heliograph::{Fault, GROUP, MAX_TUNNELLED, TUNNEL};
use mcumgr_toolkit::transport::{
    ReceiveError, SMP_HEADER_SIZE, SMP_TRANSFER_BUFFER_SIZE, SendError, Transport,
};
use serde::{Deserialize, Serialize};

/// What the client waits for the master longer than the master waits for the slave.
const MARGIN: Duration = Duration::from_secs(1);
/// A slave that has lost its seat has joined anew after so long.
const REJOINED: Duration = Duration::from_secs(2);

/// A slave's end of the tunnel.
pub struct Tunnel {
    master: Box<dyn Transport + Send>,
    node: u8,
    timeout: Duration,
    seq: u8,
    /// It has answered before.
    there: bool,
    buffer: Box<[u8; SMP_TRANSFER_BUFFER_SIZE]>,
}

/// What the master answers instead of the slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelError {
    /// A code of group 64.
    Refused(Fault),
    /// A code of SMP itself.
    Rc(u64),
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(fault) => write!(f, "the master refused: {fault:?}"),
            Self::Rc(rc) => write!(f, "the master refused with SMP code {rc}"),
        }
    }
}

impl Error for TunnelError {}

#[derive(Serialize)]
struct Ask<'a> {
    node: u8,
    timeout_ms: u64,
    #[serde(with = "serde_bytes")]
    d: &'a [u8],
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    d: Option<serde_bytes::ByteBuf>,
    #[serde(default)]
    err: Option<GroupError>,
    #[serde(default)]
    rc: Option<u64>,
}

#[derive(Deserialize)]
struct GroupError {
    rc: u64,
}

impl Tunnel {
    /// Through the master at the other end of `master` to the slave with this seat.
    pub fn new(
        mut master: Box<dyn Transport + Send>,
        node: u8,
        timeout: Duration,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        master.set_timeout(timeout + MARGIN)?;
        Ok(Self {
            master,
            node,
            timeout,
            seq: 0,
            there: false,
            buffer: Box::new([0; SMP_TRANSFER_BUFFER_SIZE]),
        })
    }
}

fn refused(error: TunnelError) -> ReceiveError {
    ReceiveError::TransportError(Box::new(error))
}

impl Transport for Tunnel {
    fn send_raw_frame(
        &mut self,
        header: [u8; SMP_HEADER_SIZE],
        data: &[u8],
    ) -> Result<(), SendError> {
        let datagram = [&header[..], data].concat();
        if datagram.len() > MAX_TUNNELLED {
            return Err(SendError::DataTooBig);
        }
        let ask = Ask {
            node: self.node,
            timeout_ms: self.timeout.as_millis() as u64,
            d: &datagram,
        };
        let mut body = Vec::new();
        ciborium::into_writer(&ask, &mut body)
            .map_err(|e| SendError::TransportError(e.to_string().into()))?;
        self.seq = self.seq.wrapping_add(1);
        self.master.send_frame(true, self.seq, GROUP, TUNNEL, &body)
    }

    fn recv_raw_frame<'a>(
        &mut self,
        buffer: &'a mut [u8; SMP_TRANSFER_BUFFER_SIZE],
    ) -> Result<&'a [u8], ReceiveError> {
        let body = self
            .master
            .receive_frame(&mut self.buffer, true, self.seq, GROUP, TUNNEL)?;
        let answer: Answer = ciborium::from_reader(body)
            .map_err(|e| ReceiveError::TransportError(e.to_string().into()))?;
        if let Some(datagram) = answer.d {
            let place = buffer
                .get_mut(..datagram.len())
                .ok_or(ReceiveError::FrameTooBig)?;
            place.copy_from_slice(&datagram);
            self.there = true;
            return Ok(place);
        }
        let code = answer.err.map(|e| e.rc);
        match code.and_then(|rc| Fault::ALL.into_iter().find(|f| *f as u64 == rc)) {
            Some(Fault::NoAnswer) => Err(ReceiveError::Timeout),
            Some(Fault::Busy) => {
                // The request before may still be on the bus: what is asked again soon, waits.
                std::thread::sleep(self.timeout / 4);
                Err(refused(TunnelError::Refused(Fault::Busy)))
            }
            Some(fault) => {
                if fault == Fault::NoSuchNode && self.there {
                    // It may be joining anew: the client asks again.
                    std::thread::sleep(REJOINED);
                }
                Err(refused(TunnelError::Refused(fault)))
            }
            None => Err(refused(TunnelError::Rc(
                code.or(answer.rc).unwrap_or_default(),
            ))),
        }
    }

    fn set_timeout(&mut self, timeout: Duration) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.timeout = timeout;
        self.master.set_timeout(timeout + MARGIN)
    }

    fn max_smp_frame_size(&self) -> usize {
        MAX_TUNNELLED
    }
}
