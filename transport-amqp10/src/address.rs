//! Addresses of RabbitMQ 4: `/queues/NAME` and `/exchanges/NAME/KEY`, with every part
//! percent-encoded; "Address v2" of RabbitMQ's documentation on AMQP 1.0.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use postrider_core::Address;

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as a part of a path.
pub(crate) fn encoded(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, RESERVED)
}

/// Where a queue is consumed, and replies are sent.
pub(crate) fn queue(name: &str) -> String {
    format!("/queues/{}", encoded(name))
}

/// Where a message is sent. The default exchange, which routes to a queue by its name, has no
/// address of its own.
pub(crate) fn target(address: &Address) -> String {
    match (address.exchange_name(), address.routing_key()) {
        ("", name) => queue(name),
        (exchange, "") => format!("/exchanges/{}", encoded(exchange)),
        (exchange, key) => format!("/exchanges/{}/{}", encoded(exchange), encoded(key)),
    }
}

/// The queue that an address names; what is no address is the queue's name itself.
pub(crate) fn queue_of(address: &str) -> Cow<'_, str> {
    let name = address.strip_prefix("/queues/");
    let decoded = name.and_then(|name| percent_decode_str(name).decode_utf8().ok());
    decoded.unwrap_or(Cow::Borrowed(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_to_the_last_character() {
        assert_eq!(queue("my/q#é"), "/queues/my%2Fq%23%C3%A9");
        assert_eq!(queue_of(&queue("my/q#é")), "my/q#é");
        assert_eq!(queue_of("plain"), "plain");
        assert_eq!(target(&Address::exchange("e", "")), "/exchanges/e");
        assert_eq!(target(&Address::exchange("e", "a.b c")), "/exchanges/e/a.b%20c");
        assert_eq!(target(&Address::exchange("", "q")), "/queues/q");
    }
}
