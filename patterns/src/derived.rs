//! Ids that follow from what a message is made of, so that whoever makes it again gives it the
//! same; and what is remembered in place of texts of any length.

use uuid::{Builder, Uuid};

/// A `UUIDv8` of the BLAKE3 hash over the parts, each behind its length.
pub(crate) fn derived<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Uuid {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parted_otherwise_has_another_id() {
        let id = |parts: &[&str]| derived(parts.iter().map(|part| part.as_bytes()));
        assert_eq!(id(&["ab", "c"]), id(&["ab", "c"]));
        assert_ne!(id(&["ab", "c"]), id(&["a", "bc"]));
        assert_ne!(id(&["ab"]), id(&["ab", ""]));
        assert_eq!(id(&["ab"]).get_version_num(), 8);
    }
}
