//! The map of anchors: who is where, how biased and how noisy; versioned and checked.
//!
//! The master keeps one map in force and looks anchors up by identity for every range.

use crate::locate::RangeObs;
use crate::math::Real;
use crc::{CRC_32_ISO_HDLC, Crc};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// A surveyed anchor. `..Anchor::default()` keeps a literal valid when fields are added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anchor {
    /// Identity, unique in a map.
    pub id: u16,
    /// Room frame, z up, metres.
    pub position_m: [f32; 3],
    /// Measured minus true distance, metres; taken off every range.
    pub bias_m: f32,
    /// Standard deviation of a range to this anchor, metres.
    pub sigma_m: f32,
}

impl Default for Anchor {
    fn default() -> Self {
        Self {
            id: 0,
            position_m: [0.0; 3],
            bias_m: 0.0,
            sigma_m: 0.05,
        }
    }
}

impl Anchor {
    /// The observation that a measured distance makes with this anchor.
    pub fn observe<T: Real>(&self, measured_m: T) -> RangeObs<T> {
        RangeObs {
            anchor_m: self.position_m.map(|x| T::of(f64::from(x))),
            range_m: (measured_m - T::of(f64::from(self.bias_m))).max(T::zero()),
            sigma_m: T::of(f64::from(self.sigma_m)),
        }
    }

    fn is_sane(&self) -> bool {
        let in_reach = |x: f32| x.abs() <= 1e4; // false for NaN
        self.position_m.into_iter().all(in_reach)
            && in_reach(self.bias_m)
            && (1e-5..=1e4).contains(&self.sigma_m)
    }
}

/// Why an anchor did not get into the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The map holds no more than its `N`.
    Full,
    /// Correct this anchor: not finite, beyond 10 km, or sigma not positive.
    Invalid {
        /// Its identity.
        id: u16,
    },
}

/// Up to `N` anchors, sorted by identity.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorMap<const N: usize> {
    version: u32,
    len: usize,
    anchors: [Anchor; N],
}

impl<const N: usize> AnchorMap<N> {
    /// An empty map.
    pub fn new(version: u32) -> Self {
        Self {
            version,
            len: 0,
            anchors: [Anchor::default(); N],
        }
    }

    /// Rises with every change that is put in force.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Adds an anchor or replaces the one of the same identity.
    pub fn insert(&mut self, anchor: Anchor) -> Result<(), MapError> {
        if !anchor.is_sane() {
            return Err(MapError::Invalid { id: anchor.id });
        }
        match self.place(anchor.id) {
            Ok(at) => {
                if let Some(slot) = self.anchors.get_mut(at) {
                    *slot = anchor;
                }
            }
            Err(at) => {
                let tail = self.anchors.get_mut(at..=self.len);
                let tail = tail.ok_or(MapError::Full)?;
                tail.rotate_right(1);
                if let Some(slot) = tail.first_mut() {
                    *slot = anchor;
                }
                self.len += 1;
            }
        }
        Ok(())
    }

    /// The anchor of this identity.
    pub fn get(&self, id: u16) -> Option<&Anchor> {
        self.place(id).ok().and_then(|at| self.anchors().get(at))
    }

    /// All anchors by rising identity.
    pub fn anchors(&self) -> &[Anchor] {
        self.anchors.get(..self.len).unwrap_or(&[])
    }

    /// CRC-32 (ISO-HDLC) over version, number and every field of every anchor, little endian:
    /// equal maps have equal checks wherever they were built.
    pub fn crc(&self) -> u32 {
        let mut digest = CRC.digest();
        digest.update(&self.version.to_le_bytes());
        digest.update(&(self.len as u32).to_le_bytes());
        for a in self.anchors() {
            digest.update(&a.id.to_le_bytes());
            for x in a.position_m.into_iter().chain([a.bias_m, a.sigma_m]) {
                digest.update(&x.to_le_bytes());
            }
        }
        digest.finalize()
    }

    fn place(&self, id: u16) -> Result<usize, usize> {
        self.anchors().binary_search_by_key(&id, |a| a.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(id: u16) -> Anchor {
        Anchor {
            id,
            position_m: [f32::from(id), 1.0, 2.5],
            ..Anchor::default()
        }
    }

    #[test]
    fn the_order_of_insertion_does_not_change_a_map() {
        let (mut up, mut down) = (AnchorMap::<4>::new(7), AnchorMap::<4>::new(7));
        for id in 1..=4 {
            assert_eq!(up.insert(anchor(id)), Ok(()));
            assert_eq!(down.insert(anchor(5 - id)), Ok(()));
        }
        assert_eq!(up, down);
        assert_eq!(up.crc(), down.crc());
        assert_eq!(up.insert(anchor(9)), Err(MapError::Full));
        assert_eq!(up.insert(anchor(2)), Ok(()), "replacing needs no room");
        assert_eq!(up.get(3), Some(&anchor(3)));
        assert_eq!(up.get(9), None);
    }

    #[test]
    fn any_change_changes_the_check() {
        let mut map = AnchorMap::<4>::new(7);
        assert_eq!(map.insert(anchor(1)), Ok(()));
        let before = map.crc();
        let moved = Anchor {
            bias_m: 0.001,
            ..anchor(1)
        };
        assert_eq!(map.insert(moved), Ok(()));
        assert_ne!(map.crc(), before);
        assert_ne!(AnchorMap::<4>::new(8).crc(), AnchorMap::<4>::new(7).crc());
    }

    #[test]
    fn an_anchor_that_cannot_be_is_refused() {
        let mut map = AnchorMap::<4>::new(1);
        for bad in [
            Anchor {
                sigma_m: 0.0,
                ..anchor(1)
            },
            Anchor {
                bias_m: f32::NAN,
                ..anchor(1)
            },
            Anchor {
                position_m: [0.0, f32::INFINITY, 0.0],
                ..anchor(1)
            },
        ] {
            assert_eq!(map.insert(bad), Err(MapError::Invalid { id: 1 }));
        }
        assert!(map.anchors().is_empty());
    }
}
