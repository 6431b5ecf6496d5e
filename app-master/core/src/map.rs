//! The anchor map as the master keeps it, and the ranges of the epoch being collected.
//!
//! A map is replaced as a whole, so that no fix is ever computed with half of one map and half of
//! another. Pieces are staged; they take effect when the last one has come, or, where the writer asks
//! to hold them, when it has read them back and names their CRC.
//!
//! ```text
//!         piece           last piece
//! Empty --------> Staged -----------------------------> in force
//!                   |     last piece, held
//!                   '------------------> Held --commit(crc)--^
//! ```

use crc::{CRC_32_ISCSI, Crc};
use heapless::Vec;
use helio_units::{Instant, Millimetres, NodeId};

/// Most anchors of one master.
pub const MAX_MAP: usize = 128;

/// Of what is to be checked whole: maps, and what is kept over a reset.
pub(crate) const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// One anchor: which slave runs it and where it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapAnchor {
    /// Identity, unique in the map.
    pub id: u16,
    /// Seat of the slave that runs it.
    pub node: NodeId,
    /// Number of the anchor at that slave.
    pub index: u8,
    /// Position in the room frame: x east, y north, z up, millimetres.
    pub position_mm: [i32; 3],
    /// Measured range minus true range, millimetres.
    pub bias_mm: i32,
}

/// Why a piece of a map was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Pieces must come in order; this offset was expected.
    Offset(usize),
    /// More anchors than fit.
    TooMany,
    /// Two anchors have this identity, or the same place at the same slave.
    Duplicate(u16),
    /// Nothing whole is held that could be put in force.
    NotHeld,
    /// What is held has this CRC; write it again.
    Crc(u32),
}

/// A map in force and one that is being written.
#[derive(Debug, Default)]
pub struct AnchorMap {
    version: u32,
    anchors: Vec<MapAnchor, MAX_MAP>,
    staged: Vec<MapAnchor, MAX_MAP>,
    /// Version of a whole map that waits in `staged` to be put in force.
    held: Option<u32>,
}

/// CRC-32C over anchors in order, each as id, node, index, x, y, z, bias in little endian.
fn crc(anchors: &[MapAnchor]) -> u32 {
    let mut digest = CRC32C.digest();
    for a in anchors {
        digest.update(&a.id.to_le_bytes());
        digest.update(&[a.node.get(), a.index]);
        for mm in a.position_mm {
            digest.update(&mm.to_le_bytes());
        }
        digest.update(&a.bias_mm.to_le_bytes());
    }
    digest.finalize()
}

impl AnchorMap {
    /// No map.
    pub const fn new() -> Self {
        Self {
            version: 0,
            anchors: Vec::new(),
            staged: Vec::new(),
            held: None,
        }
    }

    /// Version in force; 0 before the first map.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Anchors in force.
    pub fn anchors(&self) -> &[MapAnchor] {
        &self.anchors
    }

    /// CRC-32C over the anchors in order, each as id, node, index, x, y, z, bias in little endian.
    pub fn crc(&self) -> u32 {
        crc(&self.anchors)
    }

    /// What is being written, to be read back: its version once it is held whole, its anchors so
    /// far, and their CRC.
    pub fn staged(&self) -> (Option<u32>, &[MapAnchor], u32) {
        (self.held, &self.staged, crc(&self.staged))
    }

    /// Puts the map that is held in force if it is the one with this CRC.
    pub fn commit(&mut self, expected: u32) -> Result<(), MapError> {
        let version = self.held.ok_or(MapError::NotHeld)?;
        let found = crc(&self.staged);
        if found != expected {
            return Err(MapError::Crc(found));
        }
        self.held = None;
        self.anchors = core::mem::take(&mut self.staged);
        self.version = version;
        Ok(())
    }

    /// The anchor at this place of this slave.
    pub fn find(&self, node: NodeId, index: u8) -> Option<&MapAnchor> {
        self.anchors
            .iter()
            .find(|a| a.node == node && a.index == index)
    }

    /// Stages one anchor of a map of `total`; `Ok(true)` when it was the last and the map is in force.
    pub fn stage(
        &mut self,
        version: u32,
        total: usize,
        off: usize,
        anchor: MapAnchor,
    ) -> Result<bool, MapError> {
        let whole = self.hold(version, total, off, anchor)?;
        if whole {
            self.held = None;
            self.anchors = core::mem::take(&mut self.staged);
            self.version = version;
        }
        Ok(whole)
    }

    /// As [`Self::stage`], but the last anchor leaves the map waiting for [`Self::commit`].
    pub fn hold(
        &mut self,
        version: u32,
        total: usize,
        off: usize,
        anchor: MapAnchor,
    ) -> Result<bool, MapError> {
        if off == 0 || self.held.is_some() {
            self.held = None;
            self.staged.clear();
        }
        if off != self.staged.len() {
            return Err(MapError::Offset(self.staged.len()));
        }
        let twin = |a: &&MapAnchor| {
            a.id == anchor.id || (a.node == anchor.node && a.index == anchor.index)
        };
        if let Some(twin) = self.staged.iter().find(twin) {
            return Err(MapError::Duplicate(twin.id));
        }
        if total > MAX_MAP || self.staged.push(anchor).is_err() {
            return Err(MapError::TooMany);
        }
        if self.staged.len() < total {
            return Ok(false);
        }
        self.held = Some(version);
        Ok(true)
    }
}

/// Ranges to one tag, gathered from all slaves within one cycle.
#[derive(Debug, Default)]
pub struct Epoch {
    tag: Option<helio_units::TagId>,
    pieces: Vec<(NodeId, u8), MAX_MAP>,
    /// Place in the map, range.
    ranges: Vec<(u16, Millimetres), MAX_MAP>,
    /// When it is over, complete or not.
    ends: Option<Instant>,
}

impl Epoch {
    /// Nothing has come yet.
    pub const fn new() -> Self {
        Self {
            tag: None,
            pieces: Vec::new(),
            ranges: Vec::new(),
            ends: None,
        }
    }

    /// When it is over, complete or not; `None` when nothing has come yet.
    pub fn ends(&self) -> Option<Instant> {
        self.ends
    }

    /// It is over then, unless that has been said before.
    pub fn end_by(&mut self, at: Instant) {
        self.ends.get_or_insert(at);
    }

    /// Whose ranges these are; `None` when nothing has come yet.
    pub fn tag(&self) -> Option<helio_units::TagId> {
        self.tag
    }

    /// Whether this piece belongs to another epoch than the one being gathered.
    pub fn is_over_at(&self, node: NodeId, tag: helio_units::TagId, first: u8) -> bool {
        self.tag.is_some_and(|t| t != tag) || self.pieces.contains(&(node, first))
    }

    /// How many pieces have come.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Adds ranges of anchors `first..` of a slave. Anchors that are not in the map are passed over.
    pub fn add(
        &mut self,
        map: &AnchorMap,
        node: NodeId,
        tag: helio_units::TagId,
        first: u8,
        ranges: &[Option<Millimetres>],
    ) {
        if self.tag.replace(tag).is_none() {
            self.ranges.clear();
        }
        // Full vectors lose the piece, which costs one anchor of one fix.
        let _ = self.pieces.push((node, first));
        for (index, range) in (first..).zip(ranges) {
            let place = map
                .anchors()
                .iter()
                .position(|a| a.node == node && a.index == index);
            if let (Some(range), Some(place)) = (range, place.and_then(|p| u16::try_from(p).ok())) {
                let _ = self.ranges.push((place, *range));
            }
        }
    }

    /// Hands over what was gathered, place in the map and range, and starts anew.
    pub fn take(&mut self) -> Option<(helio_units::TagId, &mut [(u16, Millimetres)])> {
        self.pieces.clear();
        self.ends = None;
        Some((self.tag.take()?, &mut self.ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(id: u16) -> MapAnchor {
        let node = NodeId::new(1 + (id / 4) as u8).expect("small");
        MapAnchor {
            id,
            node,
            index: (id % 4) as u8,
            position_mm: [i32::from(id), 0, 2500],
            bias_mm: 0,
        }
    }

    #[test]
    fn a_map_takes_effect_with_its_last_anchor_and_not_before() {
        let mut map = AnchorMap::default();
        assert_eq!(map.stage(7, 3, 0, anchor(0)), Ok(false));
        assert_eq!(map.stage(7, 3, 1, anchor(1)), Ok(false));
        assert_eq!((map.version(), map.anchors().len()), (0, 0));
        assert_eq!(map.stage(7, 3, 3, anchor(3)), Err(MapError::Offset(2)));
        assert_eq!(map.stage(7, 3, 2, anchor(1)), Err(MapError::Duplicate(1)));
        assert_eq!(map.stage(7, 3, 2, anchor(2)), Ok(true));
        assert_eq!((map.version(), map.anchors().len()), (7, 3));
    }

    #[test]
    fn a_map_that_is_held_takes_effect_when_its_crc_is_named_and_not_before() {
        let mut map = AnchorMap::default();
        assert_eq!(map.commit(0), Err(MapError::NotHeld));
        assert_eq!(map.hold(7, 2, 0, anchor(0)), Ok(false));
        assert_eq!(map.commit(map.staged().2), Err(MapError::NotHeld));
        assert_eq!(map.hold(7, 2, 1, anchor(1)), Ok(true));
        assert_eq!((map.version(), map.anchors().len()), (0, 0));
        let (version, anchors, crc) = map.staged();
        assert_eq!((version, anchors.len()), (Some(7), 2));
        assert_eq!(map.commit(crc ^ 1), Err(MapError::Crc(crc)));
        assert_eq!(map.commit(crc), Ok(()));
        assert_eq!((map.version(), map.crc()), (7, crc));
        assert_eq!(map.commit(crc), Err(MapError::NotHeld));
        // A writer that begins anew gives up what was held.
        assert_eq!(map.hold(8, 1, 0, anchor(5)), Ok(true));
        assert_eq!(map.hold(9, 2, 0, anchor(6)), Ok(false));
        assert_eq!(map.staged().0, None);
    }

    #[test]
    fn the_crc_tells_maps_apart_that_differ_by_a_millimetre() {
        let mut a = AnchorMap::default();
        let mut b = AnchorMap::default();
        assert_eq!(a.stage(1, 1, 0, anchor(5)), Ok(true));
        let moved = MapAnchor {
            position_mm: [6, 0, 2500],
            ..anchor(5)
        };
        assert_eq!(b.stage(1, 1, 0, moved), Ok(true));
        assert_ne!(a.crc(), b.crc());
    }

    #[test]
    fn a_second_piece_of_the_same_slave_opens_the_next_epoch() {
        let mut map = AnchorMap::default();
        assert_eq!(map.stage(1, 1, 0, anchor(1)), Ok(true));
        let (node, tag) = (NodeId::new(1).expect("valid"), helio_units::TagId(3));
        let mut epoch = Epoch::default();
        epoch.add(&map, node, tag, 0, &[None, Some(Millimetres(1234))]);
        assert!(epoch.is_over_at(node, tag, 0));
        assert!(!epoch.is_over_at(node, tag, 2));
        assert!(epoch.is_over_at(node, helio_units::TagId(4), 2));
        let (_, ranges) = epoch.take().expect("gathered");
        assert_eq!(ranges, &[(0, Millimetres(1234))]);
        // What was handed over is not gathered again.
        epoch.add(&map, node, tag, 2, &[None]);
        assert!(epoch.take().expect("gathered").1.is_empty());
        assert_eq!(epoch.tag(), None);
    }
}
