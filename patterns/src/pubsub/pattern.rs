//! The patterns of topic exchanges, for choosing handlers inside one subscription.

/// Whether `key` matches `pattern`: `*` is one word, `#` any number of words, words are parted by
/// dots.
pub(crate) fn matches(pattern: &str, key: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    let (mut at, mut word) = (0, 0);
    // The last `#` and the word it would take next: where to go back to on a mismatch.
    let mut resume: Option<(usize, usize)> = None;
    while word < key.len() {
        match pattern.get(at) {
            Some(&"#") => {
                resume = Some((at, word));
                at += 1;
            }
            Some(expected) if *expected == "*" || *expected == key[word] => {
                at += 1;
                word += 1;
            }
            _ => {
                let Some((hash, taken)) = resume else {
                    return false;
                };
                resume = Some((hash, taken + 1));
                (at, word) = (hash + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == "#")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_broker_does() {
        for (pattern, key, expected) in [
            ("order.created", "order.created", true),
            ("order.created", "order.paid", false),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.line.added", false),
            ("order.#", "order", true),
            ("order.#", "order.line.added", true),
            ("#", "", true),
            ("#", "a.b.c", true),
            ("*", "", false),
            ("#.added", "order.line.added", true),
            ("#.added", "order.added.line", false),
            ("a.#.b.#.c", "a.b.b.x.c", true),
            ("a.#.b.#.c", "a.x.c", false),
            ("*.#.*", "a", false),
            ("*.#.*", "a.b", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }
}
