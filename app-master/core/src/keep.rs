//! What a master has learnt of its cells and should know after a reset: on a flat curve no voltage tells the state of charge, and
//! capacity is learnt over weeks.
//!
//! ```text
//! "HK" | version 1 | number of seats 1 | per seat 58 | CRC-32C 4
//!
//! seat   uid 8 | state of charge 2, sigma 2 (65535 is 1) | lithium lost, negative left, positive left 3 x f32 |
//!        their covariance, upper triangle 6 x f32 | resistance over the new cell's, sigma 2 x f32 | rests 2
//! ```
//!
//! Little endian. What belongs to a device goes with it, whatever seat it gets.

use crate::map::CRC32C;
use helio_battery::{Estimate, Learnt, Modes};
use helio_units::{Duration, Instant, Uid};

const MARK: [u8; 3] = *b"HK\x01";
const HEAD: usize = 4;
const SEAT: usize = 58;
const CHECK: usize = 4;

/// Bytes for so many seats.
pub const fn size(seats: usize) -> usize {
    HEAD + SEAT * seats + CHECK
}

/// Flash wears out: least time between two times that it is stored ...
const PAUSE: Duration = Duration::from_secs(600);
/// ... and only after the state of charge has moved by so much, or a rest has told something of the health.
const MOVED_PPM: u32 = 50_000;

/// Why nothing was recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecallError {
    /// Not a record of this layout, or cut short.
    Layout,
    /// Damaged: the check does not fit.
    Check,
}

impl core::fmt::Display for RecallError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Layout => "what was kept has another layout; the cells are learnt anew",
            Self::Check => "what was kept is damaged; the cells are learnt anew",
        })
    }
}

/// What is kept of one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Whose.
    pub uid: Uid,
    /// State of charge of its mean cell, 0 to 1, and its sigma.
    pub soc: Estimate,
    /// Health of its mean cell.
    pub learnt: Learnt,
}

/// Writes records; `None` when there is no room.
pub fn store(all: impl Iterator<Item = Kept>, to: &mut [u8]) -> Option<usize> {
    let (mut at, mut count) = (HEAD, 0u8);
    for kept in all {
        write(&kept, to.get_mut(at..at + SEAT)?)?;
        at += SEAT;
        count = count.checked_add(1)?;
    }
    to.get_mut(..3)?.copy_from_slice(&MARK);
    *to.get_mut(3)? = count;
    let check = CRC32C.checksum(to.get(..at)?);
    to.get_mut(at..at + CHECK)?
        .copy_from_slice(&check.to_le_bytes());
    Some(at + CHECK)
}

/// Reads them. What cannot be true is left out.
pub fn recall(stored: &[u8]) -> Result<impl Iterator<Item = Kept>, RecallError> {
    let (head, rest) = stored
        .split_first_chunk::<HEAD>()
        .ok_or(RecallError::Layout)?;
    let [a, b, version, count] = *head;
    let length = usize::from(count) * SEAT;
    if [a, b, version] != MARK || rest.len() != length + CHECK {
        return Err(RecallError::Layout);
    }
    let (body, check) = stored
        .split_last_chunk::<CHECK>()
        .ok_or(RecallError::Layout)?;
    if CRC32C.checksum(body) != u32::from_le_bytes(*check) {
        return Err(RecallError::Check);
    }
    let seats = rest.get(..length).unwrap_or_default();
    Ok(seats.chunks_exact(SEAT).filter_map(read))
}

fn write(kept: &Kept, to: &mut [u8]) -> Option<()> {
    let Learnt {
        modes,
        covariance,
        resistance,
        rests,
    } = kept.learnt;
    let mut rest = to;
    let mut put = |bytes: &[u8]| {
        let (here, after) = core::mem::take(&mut rest).split_at_mut_checked(bytes.len())?;
        here.copy_from_slice(bytes);
        rest = after;
        Some(())
    };
    put(&kept.uid.get().to_le_bytes())?;
    for share in [kept.soc.mean, kept.soc.sigma] {
        put(&((share.clamp(0.0, 1.0) * 65_535.0) as u16).to_le_bytes())?;
    }
    for x in [modes.lithium_lost, modes.negative_left, modes.positive_left] {
        put(&x.to_le_bytes())?;
    }
    for x in covariance {
        put(&x.to_le_bytes())?;
    }
    for x in [resistance.mean, resistance.sigma] {
        put(&x.to_le_bytes())?;
    }
    put(&u16::try_from(rests).unwrap_or(u16::MAX).to_le_bytes())
}

fn read(from: &[u8]) -> Option<Kept> {
    let (uid, rest) = from.split_first_chunk()?;
    let (soc, rest) = rest.split_first_chunk()?;
    let (sigma, rest) = rest.split_first_chunk()?;
    let share = |bytes: &[u8; 2]| f32::from(u16::from_le_bytes(*bytes)) / 65_535.0;
    let (numbers, rests) = rest.split_last_chunk()?;
    let mut x = [0.0f32; 11];
    for (x, bytes) in x.iter_mut().zip(numbers.chunks_exact(4)) {
        *x = f32::from_le_bytes(bytes.try_into().ok()?);
    }
    let [
        lithium_lost,
        negative_left,
        positive_left,
        covariance @ ..,
        mean,
        sigma_r,
    ] = x;
    let learnt = Learnt {
        modes: Modes {
            lithium_lost,
            negative_left,
            positive_left,
        },
        covariance,
        resistance: Estimate {
            mean,
            sigma: sigma_r,
        },
        rests: u32::from(u16::from_le_bytes(*rests)),
    };
    learnt.is_sane().then_some(Kept {
        uid: Uid::new(u64::from_le_bytes(*uid))?,
        soc: Estimate {
            mean: share(soc),
            sigma: share(sigma),
        },
        learnt,
    })
}

/// When to store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    learnt: bool,
    /// State of charge of the pack when it was stored.
    stored_ppm: Option<u32>,
    now_ppm: Option<u32>,
    next: Instant,
}

impl Keep {
    pub(crate) const fn new() -> Self {
        Self {
            learnt: false,
            stored_ppm: None,
            now_ppm: None,
            next: Instant::ZERO,
        }
    }

    /// A rest has told something.
    pub(crate) fn note_learnt(&mut self) {
        self.learnt = true;
    }

    pub(crate) fn note_soc(&mut self, ppm: Option<u32>) {
        self.now_ppm = ppm.or(self.now_ppm);
    }

    /// Whether to store now; said once.
    pub(crate) fn poll(&mut self, now: Instant) -> bool {
        let moved = match (self.stored_ppm, self.now_ppm) {
            (Some(stored), Some(now)) => stored.abs_diff(now) >= MOVED_PPM,
            (stored, now) => stored != now,
        };
        if now < self.next || !(self.learnt || moved) {
            return false;
        }
        self.learnt = false;
        self.stored_ppm = self.now_ppm;
        self.next = now + PAUSE;
        true
    }

    /// It could not be stored: once more, later.
    pub(crate) fn retry(&mut self) {
        self.learnt = true;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn kept(uid: u64) -> Kept {
        Kept {
            uid: Uid::new(uid).unwrap(),
            soc: Estimate {
                mean: 0.5,
                sigma: 0.02,
            },
            learnt: Learnt {
                modes: Modes {
                    lithium_lost: 0.08,
                    negative_left: 0.97,
                    positive_left: 0.95,
                },
                covariance: [4e-4, 1e-5, -1e-5, 9e-4, 2e-5, 1e-3],
                resistance: Estimate {
                    mean: 1.2,
                    sigma: 0.05,
                },
                rests: 17,
            },
        }
    }

    fn stored(uids: &[u64]) -> Vec<u8> {
        let mut bytes = std::vec![0; size(uids.len())];
        let length = store(uids.iter().map(|u| kept(*u)), &mut bytes);
        assert_eq!(length, Some(bytes.len()));
        bytes
    }

    #[test]
    fn what_is_stored_is_recalled() {
        let bytes = stored(&[7, 9]);
        let all: Vec<Kept> = recall(&bytes).unwrap().collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].uid, all[1].learnt), (kept(9).uid, kept(9).learnt));
        assert!((all[0].soc.mean - 0.5).abs() < 1e-4 && (all[0].soc.sigma - 0.02).abs() < 1e-4);
    }

    #[test]
    fn bytes_that_were_not_stored_are_refused_and_say_why() {
        let bytes = stored(&[7]);
        let refusal = |bytes: &[u8]| recall(bytes).err();
        assert_eq!(refusal(&[]), Some(RecallError::Layout));
        assert_eq!(refusal(&bytes[..20]), Some(RecallError::Layout));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(refusal(&bad).is_some(), "{at}");
        }
        assert_eq!(store([kept(1)].into_iter(), &mut [0; 40]), None);
    }

    #[test]
    fn what_no_cell_can_be_is_left_out() {
        let mut odd = kept(7);
        odd.learnt.modes.positive_left = f32::NAN;
        let mut bytes = [0; size(1)];
        store([odd].into_iter(), &mut bytes).unwrap();
        assert_eq!(recall(&bytes).unwrap().count(), 0);
    }

    #[test]
    fn flash_is_written_when_it_is_worth_it() {
        let mut keep = Keep::new();
        let at = |s: u64| Instant::from_millis(s * 1_000);
        assert!(!keep.poll(at(1)));
        keep.note_soc(Some(500_000));
        assert!(keep.poll(at(2)) && !keep.poll(at(3)));
        keep.note_soc(Some(460_000));
        assert!(!keep.poll(at(5_000)));
        keep.note_learnt();
        assert!(keep.poll(at(5_001)));
        keep.note_learnt();
        assert!(!keep.poll(at(5_100)) && keep.poll(at(5_700)));
    }
}
