//! A delivery as it comes from the wire, with what the broker counts of it.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use postrider_core::{Address, DeliveryInfo, Envelope};

use postrider_rabbitmq::{
    Version,
    delay::{self, take_count},
};

use crate::properties;

/// The header in which a quorum queue counts failures, and before 4.3 every return. It writes no 0.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The header in which a quorum queue counts earlier deliveries, since 4.3.
const ACQUIRED_COUNT: &str = "x-acquired-count";

/// The header with the place of a message in a stream.
const STREAM_OFFSET: &str = "x-stream-offset";

/// A message that was delivered, and its counts.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) info: DeliveryInfo,
}

/// Reads a delivery from `queue`. What the broker does not write itself may be anybody's word, also a
/// count.
pub(crate) fn read(
    queue: &Arc<str>,
    is_stream: bool,
    version: Version,
    delivery: lapin::message::Delivery,
) -> Delivered {
    let exchange = String::from(delivery.exchange);
    let routing_key = Cow::Owned(delivery.routing_key.into());
    let address = if exchange.is_empty() {
        Address::Queue(routing_key)
    } else {
        Address::Exchange { exchange: Cow::Owned(exchange), routing_key }
    };
    let mut message = properties::read(Bytes::from(delivery.data), &delivery.properties);
    let headers = &mut message.headers;
    let failures = take_count(headers, DELIVERY_COUNT).unwrap_or(0);
    let acquired = take_count(headers, ACQUIRED_COUNT).unwrap_or(0);
    // A dead letter may bring the counts of the queue it comes from.
    let (failures, acquired) = match version.counts_failures_apart() {
        _ if !delivery.redelivered => (0, 0),
        true => (failures.min(acquired), acquired),
        false => (failures, failures),
    };
    let offset = is_stream.then(|| properties::take_offset(headers, STREAM_OFFSET)).flatten();
    headers.remove(delay::DELIVERY_TIME);
    let earlier = delay::take_counts(headers);
    delay::hide_deaths(headers);
    let here = acquired.max(u32::from(delivery.redelivered));
    let mut info = DeliveryInfo::first(queue.clone());
    info.failures = failures.saturating_add(earlier.failures);
    info.attempt = here.saturating_add(earlier.attempts).saturating_add(1);
    info.redelivered = info.attempt > 1;
    info.offset = offset;
    info.first_failed = delay::take_first_failed(headers, info.redelivered);
    Delivered { envelope: Arc::new(Envelope::new(address, message)), info }
}
