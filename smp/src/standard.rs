//! The standard groups that master and slaves both answer: `os` (echo, parameters) and `stat`.
//! Whatever needs the device itself (reset, images, settings) is left to the caller, who hands it
//! to whoever knows the device ([`is_for_device`]).

use crate::heliograph::GROUP;
use crate::{Header, Op, Rc, Request, Written, read_map};

/// Group `os`.
pub const OS: u16 = 0;
/// Group `stat`.
pub const STAT: u16 = 2;

/// Reset, a command of group `os`.
pub const OS_RESET: u8 = 5;

const OS_ECHO: u8 = 0;
const OS_PARAMETERS: u8 = 6;
const STAT_SHOW: u8 = 0;
const STAT_LIST: u8 = 1;
/// `STAT_MGMT_ERR_INVALID_GROUP` of Zephyr's `stat_mgmt.h`.
const STAT_NO_SUCH_GROUP: u16 = 2;

/// A named set of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat<'a> {
    /// Name of the set.
    pub name: &'a str,
    /// Name and value of each counter.
    pub fields: &'a [(&'a str, u64)],
}

/// Answers the request if it is one of these; `None` leaves `out` alone and the request to the
/// caller. `buf_size` is the longest datagram that the caller takes, in octets.
pub fn handle(
    request: &Request<'_>,
    out: &mut [u8],
    buf_size: u16,
    stats: &[Stat<'_>],
) -> Option<usize> {
    let header = &request.header;
    Some(match (header.group, header.id, header.op) {
        // Zephyr answers an echo that reads, too.
        (OS, OS_ECHO, Op::Read | Op::Write) => echo(request, out),
        (OS, OS_PARAMETERS, Op::Read) => request.reply(out).body(|e| {
            e.map(2)?.str("buf_size")?.u16(buf_size)?;
            e.str("buf_count")?.u8(1)?.ok()
        }),
        (STAT, STAT_SHOW, Op::Read) => show(request, out, stats),
        (STAT, STAT_LIST, Op::Read) => request.reply(out).body(|e| {
            e.map(1)?.str("stat_list")?.array(stats.len() as u64)?;
            stats.iter().try_for_each(|s| e.str(s.name)?.ok())
        }),
        _ => return None,
    })
}

/// Whether a request is for the device that a core runs on (reset, images, settings), rather than
/// for the core: of the groups below 64 all that [`handle`] leaves alone.
pub fn is_for_device(header: &Header) -> bool {
    match (header.group, header.id) {
        (OS, OS_ECHO | OS_PARAMETERS) | (STAT, _) => false,
        (group, _) => group < GROUP && matches!(header.op, Op::Read | Op::Write),
    }
}

/// Whether a request wants the device to reset, and whether against its will (`force` in the body).
pub fn reset(request: &Request<'_>) -> Option<bool> {
    let header = &request.header;
    if (header.group, header.id, header.op) != (OS, OS_RESET, Op::Write) {
        return None;
    }
    let mut force = false;
    let read = read_map(request.body, |key, d| {
        match key {
            // Zephyr takes a boolean, older clients send a number.
            "force" if d.datatype()? == minicbor::data::Type::Bool => force = d.bool()?,
            "force" => force = d.u64()? != 0,
            _ => d.skip()?,
        }
        Ok(())
    });
    Some(force && read.is_ok())
}

fn echo(request: &Request<'_>, out: &mut [u8]) -> usize {
    let reply = request.reply(out);
    match text(request.body, "d") {
        Some(d) => reply.body(|e| e.map(1)?.str("r")?.str(d)?.ok()),
        None => reply.rc(Rc::Invalid),
    }
}

fn show(request: &Request<'_>, out: &mut [u8], stats: &[Stat<'_>]) -> usize {
    let reply = request.reply(out);
    let Some(name) = text(request.body, "name") else {
        return reply.rc(Rc::Invalid);
    };
    let Some(stat) = stats.iter().find(|s| s.name == name) else {
        return reply.error(STAT_NO_SUCH_GROUP, Rc::NoEntry);
    };
    reply.body(|e| -> Written {
        e.map(2)?.str("name")?.str(name)?;
        e.str("fields")?.map(stat.fields.len() as u64)?;
        stat.fields
            .iter()
            .try_for_each(|(name, value)| e.str(name)?.u64(*value)?.ok())
    })
}

/// The text under `wanted` in a body.
fn text<'b>(body: &'b [u8], wanted: &str) -> Option<&'b str> {
    let mut found = None;
    read_map(body, |key, d| {
        if key == wanted {
            found = Some(d.str()?);
            Ok(())
        } else {
            d.skip()
        }
    })
    .ok()?;
    found
}
