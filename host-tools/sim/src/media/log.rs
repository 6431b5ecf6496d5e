//! Writes what CAN buses did as users' tools read it: candump's log and Vector's ASC.
//!
//! Feed every [`CanEvent`] to [`CanLog::record`]; delivered frames and error frames become lines,
//! stamped with virtual time. python-can, can-utils and CANalyzer read them.

use std::io::{self, Write};

use super::can::CanEvent;
use helio_bus::{CanFrame, CanId};
use helio_units::Instant;

/// How a log is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `candump -L` of can-utils, usually `*.log`.
    Candump,
    /// Vector's text format, usually `*.asc`.
    Asc,
}

impl LogFormat {
    /// By a file's extension; `None` for others than `log` and `asc`.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "log" => Some(Self::Candump),
            "asc" => Some(Self::Asc),
            _ => None,
        }
    }
}

/// Virtual time has no date; ASC wants one. Always the same, so that the same run gives the same
/// file.
const DATE: &str = "Sat Jan 01 00:00:00.000 2000";

/// A log being written. Wrap files in a [`io::BufWriter`].
pub struct CanLog<W: Write> {
    format: LogFormat,
    out: W,
}

impl<W: Write> CanLog<W> {
    /// Begins a log.
    pub fn new(format: LogFormat, mut out: W) -> io::Result<Self> {
        if format == LogFormat::Asc {
            writeln!(out, "date {DATE}")?;
            writeln!(out, "base hex  timestamps absolute")?;
            writeln!(out, "internal events logged")?;
            writeln!(out, "Begin Triggerblock {DATE}")?;
            writeln!(out, "   0.000000 Start of measurement")?;
        }
        Ok(Self { format, out })
    }

    /// Adds the line that this event of a bus is worth, if any. Buses are counted from 0, as `vcan0` is; channels of an
    /// ASC from 1.
    pub fn record(&mut self, bus: usize, event: &CanEvent) -> io::Result<()> {
        match (event, self.format) {
            (CanEvent::Delivered { frame, at, .. }, LogFormat::Candump) => {
                self.candump(bus, frame, *at)
            }
            (CanEvent::Delivered { frame, at, .. }, LogFormat::Asc) => self.asc(bus, frame, *at),
            // The kind of error frame that Linux reports as a bus error.
            (CanEvent::Error { at, .. }, LogFormat::Candump) => {
                let (s, us) = stamp(*at);
                writeln!(
                    self.out,
                    "({s:010}.{us:06}) vcan{bus} 20000080#0000000000000000"
                )
            }
            (CanEvent::Error { at, .. }, LogFormat::Asc) => {
                let (s, us) = stamp(*at);
                let channel = bus + 1;
                writeln!(self.out, "{s:4}.{us:06} {channel}  ErrorFrame")
            }
            (CanEvent::Sent { .. } | CanEvent::State { .. }, _) => Ok(()),
        }
    }

    /// Ends the log and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        if self.format == LogFormat::Asc {
            writeln!(self.out, "End TriggerBlock")?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn candump(&mut self, bus: usize, frame: &CanFrame, at: Instant) -> io::Result<()> {
        let (s, us) = stamp(at);
        write!(self.out, "({s:010}.{us:06}) vcan{bus} ")?;
        match frame.id {
            CanId::Standard(id) => write!(self.out, "{id:03X}#")?,
            CanId::Extended(id) => write!(self.out, "{id:08X}#")?,
        }
        if frame.fd {
            // Flags: bit rate switch.
            write!(self.out, "#1")?;
        }
        for byte in frame.data() {
            write!(self.out, "{byte:02X}")?;
        }
        writeln!(self.out)
    }

    fn asc(&mut self, bus: usize, frame: &CanFrame, at: Instant) -> io::Result<()> {
        let (s, us) = stamp(at);
        let channel = bus + 1;
        let id = match frame.id {
            CanId::Standard(id) => format!("{id:X}"),
            CanId::Extended(id) => format!("{id:X}x"),
        };
        let (len, dlc) = (frame.data().len(), super::wire::dlc(frame));
        write!(self.out, "{s:4}.{us:06} ")?;
        if frame.fd {
            // No symbolic name; bit rate switch on, ESI off.
            write!(
                self.out,
                "CANFD {channel:>3} Rx   {id:>8}  {:>32} 1 0 {dlc:x} {len:>2}",
                ""
            )?;
        } else {
            write!(self.out, "{channel}  {id:<15} Rx   d {dlc:x}")?;
        }
        for byte in frame.data() {
            write!(self.out, " {byte:02X}")?;
        }
        if frame.fd {
            // Duration and length are optional; flags: FD format and bit rate switch; no CRC, no
            // bit timings.
            write!(self.out, " {:>8} {:>4} {:>8X} 0 0 0 0 0", 0, 0, 0x3000)?;
        }
        writeln!(self.out)
    }
}

/// Seconds and microseconds.
fn stamp(at: Instant) -> (u64, u64) {
    (at.as_micros() / 1_000_000, at.as_micros() % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::can::{CanBus, CanTiming};
    use helio_bus::Mailbox;

    fn log_of(format: LogFormat, fd: bool) -> String {
        let timing = CanTiming::new(1_000_000, 1_000_000).expect("whole nanoseconds");
        let mut bus = CanBus::new(timing, 0);
        let (a, _) = (bus.attach().expect("room"), bus.attach());
        let mut log = CanLog::new(format, Vec::new()).expect("memory does not fail");
        let frame = |id, data: &[u8]| CanFrame::new(id, fd, data).expect("valid");
        bus.corrupt_next(1);
        let now = Instant::from_micros(1_234_567_000);
        for (mailbox, frame) in [
            (Mailbox::Urgent, frame(CanId::Standard(0x7b), &[])),
            (Mailbox::Cyclic, frame(CanId::Extended(0x7b), &[0xde, 0xad])),
        ] {
            bus.submit(now, a, mailbox, &frame, 0).expect("free");
        }
        let mut number = 0;
        while let Some(due) = bus.poll_timeout() {
            bus.handle_timeout(due, &mut |event| {
                log.record(number, &event).expect("as above")
            });
            // The last frame as if it were another bus's.
            number = usize::from(due > now + helio_units::Duration::from_micros(150));
        }
        String::from_utf8(log.finish().expect("as above")).expect("text")
    }

    #[test]
    fn a_candump_log_has_its_lines() {
        assert_eq!(
            log_of(LogFormat::Candump, false),
            "(0000001234.567072) vcan0 20000080#0000000000000000\n\
             (0000001234.567177) vcan0 0000007B#DEAD\n\
             (0000001234.567227) vcan1 07B#\n"
        );
        assert!(log_of(LogFormat::Candump, true).contains(" vcan0 0000007B##1DEAD\n"));
    }

    #[test]
    fn an_asc_log_has_its_lines() {
        assert_eq!(
            log_of(LogFormat::Asc, false),
            "date Sat Jan 01 00:00:00.000 2000\n\
             base hex  timestamps absolute\n\
             internal events logged\n\
             Begin Triggerblock Sat Jan 01 00:00:00.000 2000\n   \
                0.000000 Start of measurement\n\
             1234.567072 1  ErrorFrame\n\
             1234.567177 1  7Bx             Rx   d 2 DE AD\n\
             1234.567227 2  7B              Rx   d 0\n\
             End TriggerBlock\n"
        );
    }
}
