//! What tells that the bytes that arrived are those that were sent.

use std::{fmt, str::FromStr};

/// The checksum of one chunk: CRC-32C (Castagnoli, RFC 3720 appendix B.4).
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The BLAKE3 hash of a payload, 256 bits. Its text form, also on the wire, is lower-case
/// hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// The hash of `bytes`.
    ///
    /// # Example: compare with a hash that was sent some other way
    ///
    /// ```
    /// use postrider_patterns::ContentHash;
    ///
    /// let hash = ContentHash::of(b"");
    /// let known = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    /// assert_eq!(hash.to_string(), known);
    /// assert_eq!(known.parse(), Ok(hash));
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The 32 bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl FromStr for ContentHash {
    type Err = NoContentHash;

    fn from_str(text: &str) -> Result<Self, NoContentHash> {
        blake3::Hash::from_hex(text).map(|hash| Self(hash.into())).map_err(|_| NoContentHash)
    }
}

/// A text that is no [`ContentHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no BLAKE3 hash: 64 hexadecimal digits are expected")]
pub struct NoContentHash;

/// A hash that grows with its payload.
#[derive(Debug, Clone, Default)]
pub(super) struct Hasher(blake3::Hasher);

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of what came so far.
    pub(super) fn so_far(&self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_s() {
        // RFC 3720, appendix B.4: 32 bytes of zeros, of ones, and rising.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(&rising), 0x46dd_794e);
    }

    #[test]
    fn a_hash_grows_with_its_payload() {
        let mut hasher = Hasher::default();
        assert_eq!(hasher.so_far(), ContentHash::of(b""));
        hasher.update(b"pay");
        hasher.update(b"load");
        assert_eq!(hasher.so_far(), ContentHash::of(b"payload"));
        assert_eq!("af13".parse::<ContentHash>(), Err(NoContentHash));
    }
}
