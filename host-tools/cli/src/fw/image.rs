//! What a firmware file is, told before a byte of it is sent: an MCUboot image, whole, signed, and
//! for which of our applications and boards.
//!
//! ```text
//! | header, 32 octets and padding | code | protected TLVs | TLVs: hash, signature |
//! '-------------- covered by the hash -------------------'
//! ```
//!
//! Layout: MCUboot's `image.h`. Our builds add a protected TLV 0xa0 with the text
//! `heliograph ROLE BOARD`. Whether the signature is the right one only the boot loader can tell.

use sha2::{Digest, Sha256};

const MAGIC: u32 = 0x96f3_b83d;
const HEADER: usize = 32;
const TLVS: u16 = 0x6907;
const PROTECTED_TLVS: u16 = 0x6908;
const HASH_SHA256: u16 = 0x10;
/// RSA-2048 to Ed25519; what lies between is MCUboot's, too.
const SIGNATURES: std::ops::RangeInclusive<u16> = 0x20..=0x25;
const OURS: u16 = 0xa0;

/// A file that MCUboot would look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As in the header: `major.minor.revision`, and `.build` unless 0.
    pub version: String,
    /// What slots are named by.
    pub hash: [u8; 32],
    /// What our build wrote into it.
    pub mark: Option<Mark>,
}

/// What an image is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// `master` or `slave`.
    pub role: String,
    /// Zephyr's name of the board, with qualifiers.
    pub board: String,
}

/// Why a file is no image to send. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Something else that builds leave behind.
    Other(&'static str),
    /// No image at all.
    NotAnImage,
    /// Shorter than its header says.
    Truncated { said: usize, found: usize },
    /// The hash in it is not its own.
    Damaged,
    /// Nothing that a boot loader could check.
    NotSigned,
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Other(what) => write!(
                f,
                "is {what}, not an MCUboot image; take zephyr.signed.bin of a build with --sysbuild"
            ),
            Self::NotAnImage => f.write_str(
                "is no MCUboot image; take zephyr.signed.bin of a build with --sysbuild",
            ),
            Self::Truncated { said, found } => write!(
                f,
                "has {found} bytes, but its header promises {said}; copy it again"
            ),
            Self::Damaged => f.write_str("is damaged: its hash is not its own; copy it again"),
            Self::NotSigned => f.write_str(
                "is not signed; sign it with imgtool and the key of the boot loader (sysbuild does)",
            ),
        }
    }
}

impl std::error::Error for ImageError {}

impl Image {
    /// Reads a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if u32_at(bytes, 0) != Some(MAGIC) {
            return Err(match bytes {
                [0x7f, b'E', b'L', b'F', ..] => ImageError::Other("an ELF file"),
                [b':', b'0'..=b'9', ..] => ImageError::Other("an Intel HEX file"),
                [b'U', b'F', b'2', b'\n', ..] => ImageError::Other("a UF2 file"),
                _ => ImageError::NotAnImage,
            });
        }
        let short = |said| ImageError::Truncated {
            said,
            found: bytes.len(),
        };
        let header = bytes.get(..HEADER).ok_or(short(HEADER))?;
        let field = |at| u32_at(header, at).unwrap_or(0) as usize;
        let half = |at| usize::from(u16_at(header, at).unwrap_or(0));
        let (head, protected, code) = (half(8), half(10), field(12));
        let covered = head.saturating_add(code).saturating_add(protected);
        let tlvs = bytes.get(covered..).ok_or(short(covered))?;
        let found = bytes
            .get(head.saturating_add(code)..covered)
            .unwrap_or_default();
        let protected = entries(found, PROTECTED_TLVS);
        let length = usize::from(u16_at(tlvs, 2).unwrap_or(4));
        if u16_at(tlvs, 0) != Some(TLVS) {
            return Err(match tlvs.len() {
                0..4 => short(covered + 4),
                _ => ImageError::NotSigned,
            });
        }
        let tlvs = tlvs.get(..length).ok_or(short(covered + length))?;
        let tlvs = entries(tlvs, TLVS);
        let value = |all: &[(u16, Vec<u8>)], kind| {
            let found = all.iter().find(|(k, _)| *k == kind);
            found.map(|(_, v)| v.clone())
        };
        let hash: [u8; 32] = value(&tlvs, HASH_SHA256)
            .and_then(|v| v.try_into().ok())
            .ok_or(ImageError::NotSigned)?;
        if Sha256::digest(&bytes[..covered]).as_slice() != hash {
            return Err(ImageError::Damaged);
        }
        if !tlvs.iter().any(|(kind, _)| SIGNATURES.contains(kind)) {
            return Err(ImageError::NotSigned);
        }
        let version = format!("{}.{}.{}", header[20], header[21], half(22));
        let build = field(24);
        Ok(Self {
            version: match build {
                0 => version,
                _ => format!("{version}.{build}"),
            },
            hash,
            mark: value(&protected, OURS).and_then(|v| Mark::parse(&v)),
        })
    }
}

impl Mark {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let ("heliograph", role, board, None) =
            (words.next()?, words.next()?, words.next()?, words.next())
        else {
            return None;
        };
        Some(Self {
            role: role.into(),
            board: board.into(),
        })
    }

    /// The board's name without qualifiers, which is what a device tells of itself.
    pub fn board_name(&self) -> &str {
        self.board.split(['/', '@']).next().unwrap_or(&self.board)
    }
}

/// The entries of a list with this head; what does not fit is left out.
fn entries(list: &[u8], magic: u16) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    if u16_at(list, 0) != Some(magic) {
        return all;
    }
    let mut at = 4;
    while let (Some(kind), Some(length)) = (u16_at(list, at), u16_at(list, at + 2)) {
        let end = at + 4 + usize::from(length);
        let Some(value) = list.get(at + 4..end) else {
            break;
        };
        all.push((kind, value.to_vec()));
        at = end;
    }
    all
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(two.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlvs(magic: u16, all: &[(u16, &[u8])]) -> Vec<u8> {
        let body: Vec<u8> = all
            .iter()
            .flat_map(|(kind, value)| {
                let head = [kind.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
                [&head, *value].concat()
            })
            .collect();
        let length = body.len() as u16 + 4;
        [&magic.to_le_bytes()[..], &length.to_le_bytes(), &body].concat()
    }

    /// 0.3.7 for a slave on nucleo_g474re, with these entries behind the hash.
    fn image(signed: &[(u16, &[u8])]) -> Vec<u8> {
        let protected = tlvs(PROTECTED_TLVS, &[(OURS, b"heliograph slave nucleo_g474re")]);
        let code = [0x5a; 1_000];
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&64u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&(protected.len() as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&1_000u32.to_le_bytes());
        bytes[20..24].copy_from_slice(&[0, 3, 7, 0]);
        bytes.extend(code);
        bytes.extend(protected);
        let hash = Sha256::digest(&bytes);
        let mut all = vec![(HASH_SHA256, hash.as_slice())];
        all.extend(signed);
        bytes.extend(tlvs(TLVS, &all));
        bytes
    }

    fn signed() -> Vec<u8> {
        image(&[(0x01, &[7; 32]), (0x22, &[1; 70])])
    }

    #[test]
    fn a_signed_image_tells_its_version_and_what_it_is_for() {
        let image = Image::parse(&signed()).expect("an image");
        assert_eq!(image.version, "0.3.7");
        let mark = image.mark.expect("marked");
        assert_eq!(
            (&mark.role[..], &mark.board[..]),
            ("slave", "nucleo_g474re")
        );
    }

    #[test]
    fn a_bit_that_flipped_anywhere_under_the_hash_is_noticed() {
        let whole = signed();
        let covered = whole.len() - (4 + 4 + 32 + 4 + 32 + 4 + 70);
        for at in (0..covered).filter(|at| !(0..16).contains(at)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert_eq!(Image::parse(&bytes), Err(ImageError::Damaged), "octet {at}");
        }
    }

    #[test]
    fn a_file_cut_short_anywhere_is_no_image() {
        let whole = signed();
        for length in 0..whole.len() {
            assert!(Image::parse(&whole[..length]).is_err(), "{length} octets");
        }
    }

    #[test]
    fn without_a_signature_there_is_nothing_to_send() {
        assert_eq!(Image::parse(&image(&[])), Err(ImageError::NotSigned));
        let bare = &signed()[..64 + 1_000];
        assert!(Image::parse(bare).is_err());
    }

    #[test]
    fn what_builds_leave_beside_the_image_is_named() {
        for (bytes, what) in [
            (&b"\x7fELF\x01\x01"[..], "an ELF file"),
            (b":10000000", "an Intel HEX file"),
            (b"UF2\n", "a UF2 file"),
        ] {
            assert_eq!(Image::parse(bytes), Err(ImageError::Other(what)));
        }
        assert_eq!(Image::parse(b"hello"), Err(ImageError::NotAnImage));
    }
}
