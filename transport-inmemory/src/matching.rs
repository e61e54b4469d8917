//! Whether a binding matches a message.

use postrider_core::{Binding, ExchangeKind, HeaderValue, Headers};

/// Whether a message with this routing key and these headers takes `binding` of an exchange.
pub(crate) fn matches(
    kind: ExchangeKind,
    binding: &Binding,
    routing_key: &str,
    headers: &Headers,
) -> bool {
    match kind {
        ExchangeKind::Direct => binding.key == routing_key,
        ExchangeKind::Topic => topic_matches(&binding.key, routing_key),
        ExchangeKind::Headers => headers_match(&binding.arguments, headers),
        _ => true,
    }
}

/// `*` stands for one word and `#` for any number, none included; words are parted by dots.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let mut pattern: Vec<&str> = pattern.split('.').collect();
    // Adjacent `#` say the same as one and would only multiply the ways to try.
    pattern.dedup_by(|a, b| *a == "#" && *b == "#");
    // The empty key has no words, as in RabbitMQ.
    let key: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    if pattern == [""] {
        return key.is_empty();
    }

    // `reach[k]` says whether the pattern read so far matches the first k words.
    let mut reach = vec![false; key.len() + 1];
    reach[0] = true;
    for word in pattern {
        if word == "#" {
            let first = reach.iter().position(|reached| *reached).unwrap_or(reach.len());
            reach[first..].fill(true);
        } else {
            for k in (0..key.len()).rev() {
                reach[k + 1] = reach[k] && (word == "*" || word == key[k]);
            }
            reach[0] = false;
        }
    }
    reach[key.len()]
}

#[derive(Clone, Copy)]
struct HeadersRule {
    all: bool,
    with_x: bool,
}

fn headers_rule(arguments: &Headers) -> Option<HeadersRule> {
    let (all, with_x) = match arguments.get("x-match").map(HeaderValue::as_text) {
        None | Some(Some("all")) => (true, false),
        Some(Some("any")) => (false, false),
        Some(Some("all-with-x")) => (true, true),
        Some(Some("any-with-x")) => (false, true),
        Some(_) => return None,
    };
    Some(HeadersRule { all, with_x })
}

fn headers_match(arguments: &Headers, headers: &Headers) -> bool {
    let Some(rule) = headers_rule(arguments) else {
        return false;
    };
    let mut wanted = arguments
        .iter()
        .filter(|(name, _)| *name != "x-match" && (rule.with_x || !name.starts_with("x-")));
    let has = |(name, value): (&str, &HeaderValue)| headers.get(name) == Some(value);
    if rule.all { wanted.all(has) } else { wanted.any(has) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topic_patterns_match_words() {
        for (pattern, key, expected) in [
            ("order.created", "order.created", true),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.created.v2", false),
            ("order.#", "order", true),
            ("order.#", "order.created.v2", true),
            ("#", "", true),
            ("#", "a.b", true),
            ("*", "", false),
            ("", "", true),
            ("", "a", false),
            ("#.created", "order.item.created", true),
            ("#.created", "created", true),
            ("a.#.b.#.c", "a.b.c", true),
            ("a.#.#.c", "a.c", true),
            ("a.#.b.#.c", "a.c", false),
            ("a..b", "a..b", true),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} on {key}");
        }
    }

    fn naive(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), None) => naive(rest, key),
            (Some((&"#", rest)), Some((_, words))) => naive(rest, key) || naive(pattern, words),
            (Some((word, rest)), Some((first, words))) => {
                (*word == "*" || word == first) && naive(rest, words)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn topic_matching_agrees_with_the_definition(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*", "#"]), 1..7),
            key in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 0..7),
        ) {
            prop_assert_eq!(
                topic_matches(&pattern.join("."), &key.join(".")),
                naive(&pattern, &key)
            );
        }
    }

    #[test]
    fn headers_match_all_or_any_and_leave_x_names_out_unless_told() {
        let binding = |rule: &'static str, names: &[&'static str]| {
            let mut arguments = Headers::new();
            arguments.set("x-match", rule);
            for name in names {
                arguments.set(*name, 1);
            }
            arguments
        };
        let headers: Headers = [("a", 1), ("b", 1), ("x-c", 1)].into_iter().collect();
        assert!(headers_match(&binding("all", &["a", "b"]), &headers));
        assert!(!headers_match(&binding("all", &["a", "z"]), &headers));
        assert!(headers_match(&binding("any", &["a", "z"]), &headers));
        assert!(!headers_match(&binding("any", &["z"]), &headers));
        assert!(headers_match(&binding("all", &["a", "x-z"]), &headers));
        assert!(!headers_match(&binding("all-with-x", &["a", "x-z"]), &headers));
        assert!(headers_match(&binding("any-with-x", &["x-c"]), &headers));
        assert!(headers_match(&Headers::new(), &headers));
    }
}
