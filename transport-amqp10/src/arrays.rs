//! Arrays of maps in the annotations of a message, which `serde_amqp` 0.18 cannot read, as lists, which
//! it can. RabbitMQ writes the deaths of a message in that way.
//!
//! Encodings: AMQP 1.0 part 1, sections 1.2 and 1.6. Sections of a message: part 3, section 3.2.

/// The codes of the sections in front of a message's properties.
const HEADER: u8 = 0x70;
const DELIVERY_ANNOTATIONS: u8 = 0x71;
const MESSAGE_ANNOTATIONS: u8 = 0x72;

const MAP_8: u8 = 0xc1;
const MAP_32: u8 = 0xd1;
const LIST_32: u8 = 0xd0;

/// The transfer with its message in `body`, the body of a frame, where something in it is to be
/// written otherwise. What cannot be followed is left as it is, for the client library to judge.
pub(crate) fn mended(body: &[u8]) -> Option<Vec<u8>> {
    // The transfer itself comes first.
    let mut at = end_of(body, 0)?;
    loop {
        let &[described, small_ulong, code] = body.get(at..at + 3)? else { return None };
        if (described, small_ulong) != (0x00, 0x53) {
            return None;
        }
        let value = at + 3;
        match code {
            HEADER | DELIVERY_ANNOTATIONS => at = end_of(body, value)?,
            MESSAGE_ANNOTATIONS => {
                let end = end_of(body, value)?;
                let annotations = mended_map(&body[value..end])?;
                return Some([&body[..value], &annotations[..], &body[end..]].concat());
            }
            _ => return None,
        }
    }
}

/// A map with its arrays of compound values as lists; `None` when it has none.
fn mended_map(map: &[u8]) -> Option<Vec<u8>> {
    let (mut at, count) = match *map.first()? {
        MAP_8 => (3, u32::from(*map.get(2)?)),
        MAP_32 => (9, number(map, 5)?),
        _ => return None,
    };
    let (mut written, mut changed) = (Vec::with_capacity(map.len() + 16), false);
    while at < map.len() {
        let end = end_of(map, at)?;
        match as_list(&map[at..end]) {
            Some(list) => {
                written.extend(list);
                changed = true;
            }
            None => written.extend_from_slice(&map[at..end]),
        }
        at = end;
    }
    if !changed {
        return None;
    }
    let size = u32::try_from(written.len() + 4).ok()?;
    let head = [&[MAP_32][..], &size.to_be_bytes(), &count.to_be_bytes()].concat();
    Some([head, written].concat())
}

/// An array of lists or maps as a list of them.
fn as_list(value: &[u8]) -> Option<Vec<u8>> {
    let (count, mut at) = match *value.first()? {
        0xe0 => (u32::from(*value.get(2)?), 3),
        0xf0 => (number(value, 5)?, 9),
        _ => return None,
    };
    let constructor = *value.get(at)?;
    at += 1;
    // The width of an element's own size.
    let width = match constructor >> 4 {
        0xc => 1,
        0xd => 4,
        _ => return None,
    };
    let mut items = Vec::with_capacity(value.len() + 16);
    for _ in 0..count {
        let size = match width {
            1 => usize::from(*value.get(at)?),
            _ => number(value, at)? as usize,
        };
        let end = at.checked_add(width)?.checked_add(size)?;
        items.push(constructor);
        items.extend_from_slice(value.get(at..end)?);
        at = end;
    }
    let size = u32::try_from(items.len() + 4).ok()?;
    let head = [&[LIST_32][..], &size.to_be_bytes(), &count.to_be_bytes()].concat();
    Some([head, items].concat())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Where the value that begins at `at` ends.
fn end_of(bytes: &[u8], at: usize) -> Option<usize> {
    let constructor = *bytes.get(at)?;
    if constructor == 0x00 {
        let descriptor = end_of(bytes, at + 1)?;
        return end_of(bytes, descriptor);
    }
    let behind = at + 1;
    let size = match constructor >> 4 {
        0x4 => 0,
        0x5 => 1,
        0x6 => 2,
        0x7 => 4,
        0x8 => 8,
        0x9 => 16,
        0xa | 0xc | 0xe => 1 + usize::from(*bytes.get(behind)?),
        0xb | 0xd | 0xf => 4 + number(bytes, behind)? as usize,
        _ => return None,
    };
    let end = behind.checked_add(size)?;
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp_types::{
        messaging::{Body, Message, message::DecodeIntoMessage},
        primitives::Value,
    };
    use proptest::prelude::*;
    use serde_amqp::read::SliceReader;

    use super::*;

    /// A transfer, a header, annotations with a symbol and an array of two maps, and a body.
    fn dead_letter() -> Vec<u8> {
        let map = |queue: &[u8]| {
            let mut pairs = vec![0xa1, 1, b'q', 0xa1, u8::try_from(queue.len()).unwrap()];
            pairs.extend(queue);
            let mut map = u32::try_from(pairs.len() + 4).unwrap().to_be_bytes().to_vec();
            map.extend(2_u32.to_be_bytes());
            map.extend(pairs);
            map
        };
        let mut items = vec![MAP_32];
        items.extend(map(b"orders"));
        items.extend(map(b"first"));
        let mut array = vec![0xf0];
        array.extend(u32::try_from(items.len() + 4).unwrap().to_be_bytes());
        array.extend(2_u32.to_be_bytes());
        array.extend(items);
        let mut pairs = vec![0xa3, 3, b'x', b'-', b'a', 0xa1, 1, b'v', 0xa3, 3, b'x', b'-', b'd'];
        pairs.extend(array);
        let mut sections =
            vec![0x00, 0x53, HEADER, 0xc0, 2, 1, 0x41, 0x00, 0x53, MESSAGE_ANNOTATIONS];
        sections.extend([MAP_8, u8::try_from(pairs.len() + 1).unwrap(), 4]);
        sections.extend(pairs);
        sections.extend([0x00, 0x53, 0x75, 0xa0, 2, b'o', b'k']);
        sections
    }

    const TRANSFER: [u8; 6] = [0x00, 0x53, 0x14, 0xc0, 1, 0];

    #[test]
    fn an_array_of_maps_is_a_list_of_the_same_maps() {
        let sent = [&TRANSFER[..], &dead_letter()].concat();
        let mended = mended(&sent).expect("there is an array");
        let reader = SliceReader::new(&mended[TRANSFER.len()..]);
        let message: Message<Body<Value>> = Body::decode_message_from_reader(reader).unwrap();
        let annotations = message.message_annotations.unwrap().0;
        let values: Vec<_> = annotations.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values[0], Value::String("v".to_owned()));
        let Value::List(maps) = &values[1] else { panic!("{:?}", values[1]) };
        assert_eq!(maps.len(), 2);
        assert!(message.body.is_data() && message.header.unwrap().durable);
        assert_eq!(super::mended(&mended), None, "there is none left");
    }

    proptest! {
        /// Whatever comes, it is followed to its end or left alone.
        #[test]
        fn hostile_bytes_are_left_alone(
            at in 0_usize..200,
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut sent = [&TRANSFER[..], &dead_letter()].concat();
            let at = at.min(sent.len());
            sent.splice(at..(at + bytes.len()).min(sent.len()), bytes);
            let _either = mended(&sent);
        }
    }
}
