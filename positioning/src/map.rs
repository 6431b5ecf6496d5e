//! The map of anchors: who is where, how biased and how noisy; versioned and checked.
//!
//! The master keeps one map in force and looks anchors up by identity for every range. A new one
//! is staged piece by piece, read back, and put in force as a whole by [`Staging::commit`].
//!
//! On disk and wire a map is CBOR (RFC 8949), deterministic: definite lengths, shortest integers,
//! keys in rising order, lengths as single floats, no negative zero. The same map has the same
//! bytes, hence the same CRC, wherever it was written.
//!
//! ```text
//! map    = [payload: bytes .cbor content, crc: uint]      CRC-32/ISO-HDLC of the payload
//! content = {0: 1 or 2,                                   format
//!            1: uint,                                     version
//!            2: [id, x, y, z, bias, sigma, light] ...,    anchors by rising identity, metres
//!            ? 3: [latitude, longitude, height, bearing]} where the room is on Earth
//! light  = null / [axis x, axis y, axis z, order, gain, ? sigma of ln power]
//! ```
//!
//! Format 2 is that of maps in which a luminaire has a sigma; all others are written in format 1,
//! which readers of either age understand and whose check has not changed.

use crate::light::Luminaire;
use crate::locate::RangeObs;
use crate::math::Real;
use crc::{CRC_32_ISO_HDLC, Crc, Digest, Table};
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decoder, Encoder};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// No luminaire has a sigma.
const FORMAT_PLAIN: u8 = 1;
/// At least one has.
const FORMAT_SIGMA: u8 = 2;

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
    /// How its light shines, if it is a luminaire whose power is measured.
    pub light: Option<Luminaire>,
}

/// Where the room frame lies on Earth (WGS 84).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Georeference {
    /// Of the room's origin, degrees, north positive.
    pub latitude_deg: f64,
    /// Of the room's origin, degrees, east positive.
    pub longitude_deg: f64,
    /// Of the room's origin above the ellipsoid, metres.
    pub height_m: f64,
    /// From north to the room's y axis, clockwise, degrees.
    pub bearing_deg: f64,
}

impl Default for Anchor {
    fn default() -> Self {
        Self {
            id: 0,
            position_m: [0.0; 3],
            bias_m: 0.0,
            sigma_m: 0.05,
            light: None,
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
            && self.light.is_none_or(|light| light.is_sane())
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
    georeference: Option<Georeference>,
    len: usize,
    anchors: [Anchor; N],
}

/// Why bytes are no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapDecodeError {
    /// Not this structure, or cut short; ask for the file again.
    Malformed,
    /// The bytes changed on the way; ask for the file again.
    Checksum {
        /// Written in the file.
        expected: u32,
        /// Of the bytes that came.
        found: u32,
    },
    /// Written by a newer program; update this one.
    Format(u8),
    /// The same content has another, shorter or ordered, spelling: write it with this program.
    NotCanonical,
    /// Correct this anchor.
    Anchor(MapError),
}

impl<const N: usize> AnchorMap<N> {
    /// An empty map.
    pub fn new(version: u32) -> Self {
        Self {
            version,
            georeference: None,
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

    /// Where the room is on Earth.
    pub fn georeference(&self) -> Option<&Georeference> {
        self.georeference.as_ref()
    }

    /// Says where the room is on Earth.
    pub fn set_georeference(&mut self, georeference: Option<Georeference>) {
        self.georeference = georeference;
    }

    /// CRC-32 (ISO-HDLC) of the canonical content: equal maps have equal checks.
    pub fn crc(&self) -> u32 {
        let mut sink = Check {
            digest: CRC.digest(),
            len: 0,
        };
        match self.content(&mut Encoder::new(&mut sink)) {
            Ok(()) => sink.digest.finalize(),
            Err(_) => 0, // the sink refuses nothing
        }
    }

    /// Writes the map in its canonical form; fails only if `sink` does.
    pub fn encode<W: Write>(&self, sink: W) -> Result<(), EncodeError<W::Error>> {
        let mut check = Check {
            digest: CRC.digest(),
            len: 0,
        };
        let counted = self.content(&mut Encoder::new(&mut check));
        let mut e = Encoder::new(sink);
        if counted.is_ok() {
            // The head of a byte string, then its content as it is made.
            e.array(2)?;
            head(&mut e, check.len)?;
            self.content(&mut e)?;
            e.u32(check.digest.finalize())?;
        }
        Ok(())
    }

    /// Reads a map and insists on its canonical form.
    pub fn decode(bytes: &[u8]) -> Result<Self, MapDecodeError> {
        let malformed = |_| MapDecodeError::Malformed;
        let mut d = Decoder::new(bytes);
        if d.array().map_err(malformed)? != Some(2) {
            return Err(MapDecodeError::Malformed);
        }
        let payload = d.bytes().map_err(malformed)?;
        let expected = d.u32().map_err(malformed)?;
        let found = CRC.checksum(payload);
        if expected != found {
            return Err(MapDecodeError::Checksum { expected, found });
        }
        let rest = bytes.len() - d.position();
        let map = Self::decode_content(payload)?;
        // Written again it must be the same, or two files could be one map.
        let mut again = Same {
            left: bytes,
            same: rest == 0,
        };
        let encoded = map.encode(&mut again);
        match encoded.is_ok() && again.same && again.left.is_empty() {
            true => Ok(map),
            false => Err(MapDecodeError::NotCanonical),
        }
    }

    fn format(&self) -> u8 {
        let told = |a: &Anchor| a.light.is_some_and(|l| l.sigma_ln.is_some());
        match self.anchors().iter().any(told) {
            true => FORMAT_SIGMA,
            false => FORMAT_PLAIN,
        }
    }

    fn content<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), EncodeError<W::Error>> {
        e.map(3 + u64::from(self.georeference.is_some()))?;
        e.u8(0)?.u8(self.format())?.u8(1)?.u32(self.version)?;
        e.u8(2)?.array(self.len as u64)?;
        for a in self.anchors() {
            e.array(7)?.u16(a.id)?;
            for x in a.position_m.into_iter().chain([a.bias_m, a.sigma_m]) {
                e.f32(x + 0.0)?;
            }
            match a.light {
                None => {
                    e.null()?;
                }
                Some(light) => {
                    e.array(5 + u64::from(light.sigma_ln.is_some()))?;
                    let always = light.axis.into_iter().chain([light.order, light.gain]);
                    for x in always.chain(light.sigma_ln) {
                        e.f32(x + 0.0)?;
                    }
                }
            }
        }
        if let Some(g) = &self.georeference {
            e.u8(3)?.array(4)?;
            for x in [g.latitude_deg, g.longitude_deg, g.height_m, g.bearing_deg] {
                e.f64(x + 0.0)?;
            }
        }
        Ok(())
    }

    fn decode_content(payload: &[u8]) -> Result<Self, MapDecodeError> {
        let malformed = |_| MapDecodeError::Malformed;
        let mut d = Decoder::new(payload);
        let pairs = d.map().map_err(malformed)?;
        let mut map = Self::new(0);
        for _ in 0..pairs.ok_or(MapDecodeError::NotCanonical)? {
            match d.u8().map_err(malformed)? {
                0 => match d.u8().map_err(malformed)? {
                    FORMAT_PLAIN | FORMAT_SIGMA => {} // which of them, the comparison tells
                    other => return Err(MapDecodeError::Format(other)),
                },
                1 => map.version = d.u32().map_err(malformed)?,
                2 => {
                    let count = d.array().map_err(malformed)?;
                    for _ in 0..count.ok_or(MapDecodeError::NotCanonical)? {
                        let anchor = decode_anchor(&mut d).map_err(malformed)?;
                        map.insert(anchor).map_err(MapDecodeError::Anchor)?;
                    }
                }
                3 => {
                    let mut read = || {
                        let mut x = [0.0; 4];
                        if d.array()? != Some(4) {
                            return Err(minicbor::decode::Error::message("georeference"));
                        }
                        for x in &mut x {
                            *x = d.f64()?;
                        }
                        Ok(x)
                    };
                    let [latitude_deg, longitude_deg, height_m, bearing_deg] =
                        read().map_err(malformed)?;
                    map.georeference = Some(Georeference {
                        latitude_deg,
                        longitude_deg,
                        height_m,
                        bearing_deg,
                    });
                }
                _ => return Err(MapDecodeError::Malformed),
            }
        }
        Ok(map)
    }

    fn place(&self, id: u16) -> Result<usize, usize> {
        self.anchors().binary_search_by_key(&id, |a| a.id)
    }
}

fn decode_anchor(d: &mut Decoder<'_>) -> Result<Anchor, minicbor::decode::Error> {
    let wrong = || minicbor::decode::Error::message("anchor");
    if d.array()? != Some(7) {
        return Err(wrong());
    }
    let mut anchor = Anchor {
        id: d.u16()?,
        ..Anchor::default()
    };
    for x in &mut anchor.position_m {
        *x = d.f32()?;
    }
    anchor.bias_m = d.f32()?;
    anchor.sigma_m = d.f32()?;
    if d.datatype()? == minicbor::data::Type::Null {
        d.null()?;
        return Ok(anchor);
    }
    let entries = d.array()?;
    if !matches!(entries, Some(5 | 6)) {
        return Err(wrong());
    }
    anchor.light = Some(Luminaire {
        axis: [d.f32()?, d.f32()?, d.f32()?],
        order: d.f32()?,
        gain: d.f32()?,
        sigma_ln: match entries {
            Some(6) => Some(d.f32()?),
            _ => None,
        },
    });
    Ok(anchor)
}

/// The head of a byte string of `len` bytes in the shortest form: that of an unsigned integer
/// with major type 2.
fn head<W: Write>(e: &mut Encoder<W>, len: u32) -> Result<(), EncodeError<W::Error>> {
    let [a, b, c, d] = len.to_be_bytes();
    let write = |bytes: &[u8], e: &mut Encoder<W>| {
        let sink = e.writer_mut();
        sink.write_all(bytes).map_err(EncodeError::write)
    };
    match len {
        0..=23 => write(&[0x40 | d], e),
        24..=0xff => write(&[0x58, d], e),
        0x100..=0xffff => write(&[0x59, c, d], e),
        _ => write(&[0x5a, a, b, c, d], e),
    }
}

/// Takes bytes for their check and number.
struct Check<'a> {
    digest: Digest<'a, u32, Table<1>>,
    len: u32,
}

impl Write for Check<'_> {
    type Error = core::convert::Infallible;
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.digest.update(bytes);
        self.len = self.len.saturating_add(bytes.len() as u32);
        Ok(())
    }
}

/// Takes bytes and compares them with others.
struct Same<'a> {
    left: &'a [u8],
    same: bool,
}

impl Write for Same<'_> {
    type Error = core::convert::Infallible;
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        match self.left.strip_prefix(bytes) {
            Some(left) => self.left = left,
            None => self.same = false,
        }
        Ok(())
    }
}

/// A map that is coming in pieces and is not in force yet.
#[derive(Clone, Debug)]
pub struct Staging<const N: usize> {
    map: AnchorMap<N>,
    total: usize,
}

/// Why a piece was not taken or a staged map not put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageError {
    /// Send the anchors from this place on.
    Expected(usize),
    /// Correct this anchor and begin anew.
    Anchor(MapError),
    /// What was read back is not what was meant; begin anew.
    Checksum {
        /// Of the staged map.
        staged: u32,
    },
}

impl<const N: usize> Staging<N> {
    /// Begins a map of `total` anchors.
    pub fn new(version: u32, total: usize) -> Result<Self, StageError> {
        if total > N {
            return Err(StageError::Anchor(MapError::Full));
        }
        let map = AnchorMap::new(version);
        Ok(Self { map, total })
    }

    /// Takes the anchors from place `off` on and tells the next place. A piece that came before
    /// is taken again, so that a lost answer does no harm.
    pub fn put(&mut self, off: usize, anchors: &[Anchor]) -> Result<usize, StageError> {
        if off > self.map.len || off + anchors.len() > self.total {
            return Err(StageError::Expected(self.map.len));
        }
        for anchor in anchors {
            self.map.insert(*anchor).map_err(StageError::Anchor)?;
        }
        Ok(self.map.len)
    }

    /// The map for reading back, once all its anchors have come.
    pub fn staged(&self) -> Option<&AnchorMap<N>> {
        (self.map.len == self.total).then_some(&self.map)
    }

    /// Hands over the map that is to be in force if it is whole and `crc` is its check.
    pub fn commit(self, crc: u32) -> Result<AnchorMap<N>, StageError> {
        if self.map.len != self.total {
            return Err(StageError::Expected(self.map.len));
        }
        match self.map.crc() {
            staged if staged == crc => Ok(self.map),
            staged => Err(StageError::Checksum { staged }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

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

    fn full() -> AnchorMap<8> {
        let mut map = AnchorMap::new(70_000);
        for id in [1, 300, 2] {
            assert_eq!(map.insert(anchor(id)), Ok(()));
        }
        let light = Some(Luminaire {
            axis: [0.0, 0.0, -1.0],
            order: 1.3,
            gain: 2.5,
            sigma_ln: None,
        });
        assert_eq!(map.insert(Anchor { light, ..anchor(7) }), Ok(()));
        map.set_georeference(Some(Georeference {
            latitude_deg: 47.37,
            longitude_deg: 8.54,
            height_m: 408.0,
            bearing_deg: 12.5,
        }));
        map
    }

    fn bytes<const N: usize>(map: &AnchorMap<N>) -> Vec<u8> {
        let mut bytes = Vec::new();
        map.encode(&mut bytes).expect("a vector takes all");
        bytes
    }

    #[test]
    fn a_map_survives_its_file() {
        let map = full();
        let file = bytes(&map);
        assert_eq!(AnchorMap::<8>::decode(&file), Ok(map.clone()));
        assert_eq!(
            file[file.len() - 4..],
            map.crc().to_be_bytes(),
            "the check closes the file"
        );
        assert_eq!(
            AnchorMap::<3>::decode(&file),
            Err(MapDecodeError::Anchor(MapError::Full))
        );
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let map = full();
        let file = bytes(&map);
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut broken = file.clone();
                broken[at] ^= 1 << bit;
                assert!(AnchorMap::<8>::decode(&broken).is_err(), "{at} {bit}");
            }
            assert!(AnchorMap::<8>::decode(&file[..at]).is_err(), "cut at {at}");
        }
        let longer: Vec<u8> = file.iter().copied().chain([0]).collect();
        assert_eq!(
            AnchorMap::<8>::decode(&longer),
            Err(MapDecodeError::NotCanonical)
        );
    }

    /// Format 1 as it was written before there was another: with and without a sigma.
    #[test]
    fn a_sigma_of_light_makes_a_newer_format_and_older_maps_keep_their_bytes() {
        let old = [
            0x82, 0x58, 0x3c, 0xa3, 0, 1, 1, 9, 2, 0x81, 0x87, 7, // one anchor, 7
            0xfa, 0x40, 0xe0, 0, 0, 0xfa, 0x3f, 0x80, 0, 0, 0xfa, 0x40, 0x20, 0,
            0, // 7, 1, 2.5
            0xfa, 0, 0, 0, 0, 0xfa, 0x3d, 0x4c, 0xcc, 0xcd, // no bias, 0.05
            0x85, 0xfa, 0, 0, 0, 0, 0xfa, 0, 0, 0, 0, 0xfa, 0xbf, 0x80, 0, 0, // axis down
            0xfa, 0x3f, 0x80, 0, 0, 0xfa, 0x40, 0, 0, 0, // order 1, gain 2
        ];
        let crc = CRC.checksum(&old[3..]);
        let mut old = old.to_vec();
        old.push(0x1a);
        old.extend(crc.to_be_bytes());
        let map = AnchorMap::<8>::decode(&old).expect("written before");
        assert_eq!((map.format(), bytes(&map)), (FORMAT_PLAIN, old));

        let mut map = full();
        assert_eq!(map.format(), FORMAT_PLAIN);
        let light = map.get(7).and_then(|a| a.light).map(|l| Luminaire {
            sigma_ln: Some(0.08),
            ..l
        });
        assert_eq!(map.insert(Anchor { light, ..anchor(7) }), Ok(()));
        let file = bytes(&map);
        assert_eq!(map.format(), FORMAT_SIGMA);
        assert_eq!(AnchorMap::<8>::decode(&file), Ok(map.clone()));
        // The same content under the other number is another spelling.
        for (format, map) in [(FORMAT_SIGMA, full()), (FORMAT_PLAIN, map)] {
            let mut file = bytes(&map);
            let end = file.len() - 5;
            let start = file.iter().position(|b| *b == 0xa4).expect("a map of four");
            file[start + 2] = format;
            let crc = CRC.checksum(&file[start..end]);
            file[end + 1..].copy_from_slice(&crc.to_be_bytes());
            assert_eq!(
                AnchorMap::<8>::decode(&file),
                Err(MapDecodeError::NotCanonical)
            );
        }
        let bad = light.map(|l| Luminaire {
            sigma_ln: Some(f32::NAN),
            ..l
        });
        let bad = Anchor {
            light: bad,
            ..anchor(7)
        };
        let refused = AnchorMap::<1>::new(1).insert(bad);
        assert_eq!(refused, Err(MapError::Invalid { id: 7 }));
    }

    #[test]
    fn another_order_of_anchors_is_not_canonical() {
        let mut content = Vec::new();
        let mut e = Encoder::new(&mut content);
        let ok = (|| {
            e.map(3)?.u8(0)?.u8(1)?.u8(1)?.u8(5)?.u8(2)?.array(2)?;
            for id in [2u8, 1] {
                e.array(7)?.u8(id)?;
                for x in [0.0, 1.0, 2.0, 0.0, 0.05f32] {
                    e.f32(x)?;
                }
                e.null()?;
            }
            Ok::<_, EncodeError<_>>(())
        })();
        assert!(ok.is_ok());
        let mut file = Vec::new();
        let mut e = Encoder::new(&mut file);
        let crc = CRC.checksum(&content);
        let done = e.array(2).and_then(|e| e.bytes(&content)?.u32(crc));
        assert!(done.is_ok());
        assert_eq!(
            AnchorMap::<8>::decode(&file),
            Err(MapDecodeError::NotCanonical)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_are_a_map(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = AnchorMap::<8>::decode(&bytes);
        }
    }

    #[test]
    fn a_staged_map_is_in_force_whole_or_not_at_all() {
        let wanted = {
            let mut map = AnchorMap::<8>::new(2);
            for id in 1..=3 {
                assert_eq!(map.insert(anchor(id)), Ok(()));
            }
            map
        };
        let mut staging = Staging::<8>::new(2, 3).expect("room for three");
        assert_eq!(staging.put(0, &[anchor(1), anchor(2)]), Ok(2));
        assert_eq!(staging.put(3, &[anchor(3)]), Err(StageError::Expected(2)));
        assert_eq!(staging.staged(), None);
        assert_eq!(
            staging.clone().commit(wanted.crc()),
            Err(StageError::Expected(2))
        );
        assert_eq!(staging.put(0, &[anchor(1), anchor(2)]), Ok(2), "again");
        assert_eq!(staging.put(2, &[anchor(3)]), Ok(3));
        assert_eq!(staging.staged(), Some(&wanted));
        let staged = wanted.crc();
        assert_eq!(
            staging.clone().commit(!staged),
            Err(StageError::Checksum { staged })
        );
        assert_eq!(staging.commit(staged), Ok(wanted));
    }
}
