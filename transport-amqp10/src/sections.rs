//! The sections of a message, where the client library cannot read or write what has to be
//! read or written.
//!
//! - RabbitMQ writes the deaths of a message as an array of maps, which `serde_amqp` 0.18 cannot read.
//!   As a list it can. The same is true of an array without elements, which the management has in its
//!   answers.
//! - `fe2o3-amqp` 0.18 takes a header without a priority and one with the default for the same, and
//!   writes neither. RabbitMQ's classic queues do tell them apart. Where the default is written out, the
//!   highest bit of the delivery count says so on this side of the wire.
//! - It reads values within values by recursion without a limit, so that a message which anybody sent
//!   would end the process. One that goes deep is broken off here, and is then no message at all.
//! - It does not write that a message is not durable, and RabbitMQ before 4.2 takes silence for durable.
//!
//! Encodings: AMQP 1.0 part 1, sections 1.2 and 1.6. Sections of a message: part 3, section 3.2.

/// The codes of the sections.
const HEADER: u8 = 0x70;
const DELIVERY_ANNOTATIONS: u8 = 0x71;
const MESSAGE_ANNOTATIONS: u8 = 0x72;
const PROPERTIES: u8 = 0x73;
const APPLICATION_PROPERTIES: u8 = 0x74;
const VALUE: u8 = 0x77;

const MAP_8: u8 = 0xc1;
const MAP_32: u8 = 0xd1;
const LIST_0: u8 = 0x45;
const LIST_8: u8 = 0xc0;
const LIST_32: u8 = 0xd0;
const NULL: u8 = 0x40;
const UBYTE: u8 = 0x50;
const UINT_0: u8 = 0x43;
const UINT_8: u8 = 0x52;
const UINT_32: u8 = 0x70;
const TRUE: u8 = 0x41;
const FALSE: u8 = 0x42;
const BOOLEAN: u8 = 0x56;

/// What a message has that says nothing of its priority; part 3, section 3.2.1.
pub(crate) const DEFAULT_PRIORITY: u8 = 4;

/// Set in the delivery count of a header whose priority is written out and the default.
pub(crate) const WRITTEN_OUT: u32 = 0x8000_0000;

/// How many values may be within each other. Nothing that this side sends has as many.
const MOST_LEVELS: usize = 64;

/// A constructor that there is not: part 1, section 1.2.
const NONSENSE: u8 = 0x30;

/// What a transfer says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    /// Of its link.
    pub(crate) handle: u32,
    /// Whether the message goes on in the next transfer.
    pub(crate) more: bool,
    /// Where the message begins.
    payload: usize,
}

impl Transfer {
    /// Reads it from the body of a frame: part 2, section 2.7.5.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let payload = end_of(body, 0)?;
        let mut fields = fields(body.get(3..payload)?)?;
        let handle = uint(fields.next()?)?;
        let more = matches!(fields.nth(4), Some([TRUE] | [BOOLEAN, 1]));
        Some(Self { handle, more, payload })
    }
}

/// The first transfer of a message as the client library can read it, where that is otherwise. What
/// cannot be followed is left as it is, for the client library to judge.
pub(crate) fn readable(body: &[u8], transfer: Transfer) -> Option<Vec<u8>> {
    if !is_shallow(body.get(transfer.payload..)?) {
        // The client library refuses it as unreadable, whatever comes in the transfers after it.
        return Some([&body[..transfer.payload], &[NONSENSE]].concat());
    }
    rewrite(body, transfer, marked, listed, listed)
}

/// The first transfer of a message as the client library could not write it, where that is otherwise.
pub(crate) fn written_out(body: &[u8], transfer: Transfer) -> Option<Vec<u8>> {
    rewrite(body, transfer, unmarked, |_| None, |_| None)
}

type Rewrite = fn(&[u8]) -> Option<Vec<u8>>;

fn rewrite(
    body: &[u8],
    transfer: Transfer,
    header: Rewrite,
    annotations: Rewrite,
    value: Rewrite,
) -> Option<Vec<u8>> {
    let mut at = transfer.payload;
    let mut copied = 0;
    let mut written = Vec::new();
    while let Some(&[0x00, 0x53, code]) = body.get(at..at + 3) {
        let begin = at + 3;
        let rewrite = match code {
            HEADER => header,
            DELIVERY_ANNOTATIONS | PROPERTIES | APPLICATION_PROPERTIES => |_: &[u8]| None,
            MESSAGE_ANNOTATIONS => annotations,
            VALUE => value,
            _ => break,
        };
        let Some(end) = end_of(body, begin) else { break };
        if let Some(instead) = rewrite(&body[begin..end]) {
            written.extend_from_slice(&body[copied..begin]);
            written.extend(instead);
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return None;
    }
    written.extend_from_slice(&body[copied..]);
    Some(written)
}

/// A header whose default priority is written out, with its mark.
fn marked(header: &[u8]) -> Option<Vec<u8>> {
    let fields = fields(header)?;
    if *fields.clone().nth(1)? != [UBYTE, DEFAULT_PRIORITY] {
        return None;
    }
    let count = fields.clone().nth(4).map_or(Some(0), uint)?;
    Some(header_of(fields, true, count | WRITTEN_OUT))
}

/// A header with the mark, without it and with the priority written out; and one that does not say
/// whether the message is durable, saying that it is not.
fn unmarked(header: &[u8]) -> Option<Vec<u8>> {
    let fields = fields(header)?;
    let is_silent = fields.clone().next().is_none_or(|durable| durable == [NULL]);
    let count = fields.clone().nth(4).map_or(Some(0), uint)?;
    let is_marked = count & WRITTEN_OUT != 0;
    (is_silent || is_marked).then(|| header_of(fields, is_marked, count & !WRITTEN_OUT))
}

/// A header that says whether the message is durable, with the default priority where it is
/// `explicit`, and with another delivery count.
fn header_of<'a>(fields: impl Iterator<Item = &'a [u8]>, explicit: bool, count: u32) -> Vec<u8> {
    let fields: Vec<_> = fields.collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or(&[NULL]);
    let durable = if field(0) == [NULL] { &[FALSE] } else { field(0) };
    let priority = if explicit { &[UBYTE, DEFAULT_PRIORITY] } else { field(1) };
    let count = [&[UINT_32][..], &count.to_be_bytes()].concat();
    let items = [durable, priority, field(2), field(3), &count].concat();
    let size = u32::try_from(items.len() + 4).unwrap_or(u32::MAX);
    [&[LIST_32][..], &size.to_be_bytes(), &5_u32.to_be_bytes(), &items].concat()
}

/// The encoded fields of an encoded list.
fn fields(list: &[u8]) -> Option<impl Iterator<Item = &[u8]> + Clone> {
    let (start, count) = match *list.first()? {
        LIST_0 => (1, 0),
        LIST_8 => (3, u32::from(*list.get(2)?)),
        LIST_32 => (9, number(list, 5)?),
        _ => return None,
    };
    let mut at = start;
    Some((0..count).map_while(move |_| {
        let begin = at;
        at = end_of(list, begin)?;
        Some(&list[begin..at])
    }))
}

fn uint(value: &[u8]) -> Option<u32> {
    match *value {
        [NULL | UINT_0] => Some(0),
        [UINT_8, small] => Some(small.into()),
        [UINT_32, ..] => number(value, 1),
        _ => None,
    }
}

/// A map with its arrays as lists that are of compound values or empty; `None` when it has none.
fn listed(map: &[u8]) -> Option<Vec<u8>> {
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

/// An array of lists or maps as a list of them, and an empty one as an empty list.
fn as_list(value: &[u8]) -> Option<Vec<u8>> {
    let (count, mut at) = match *value.first()? {
        0xe0 => (u32::from(*value.get(2)?), 3),
        0xf0 => (number(value, 5)?, 9),
        _ => return None,
    };
    if count == 0 {
        return Some(vec![LIST_0]);
    }
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

/// A list, a map or an array that is being gone through.
struct Inside {
    /// Behind its last byte.
    end: usize,
    /// The constructor that the elements of an array have in common.
    element: Option<u8>,
}

/// Whether no more than [`MOST_LEVELS`] of the values are within each other, as far as they are here.
/// It does not call itself, and does not go into texts and bytes.
fn is_shallow(bytes: &[u8]) -> bool {
    let mut inside: Vec<Inside> = Vec::new();
    let (mut at, mut descriptors) = (0, 0);
    loop {
        while inside.last().is_some_and(|innermost| innermost.end <= at) {
            inside.pop();
        }
        if inside.len() + descriptors > MOST_LEVELS {
            return false;
        }
        // What elements of an array claim to take may be far more than there is.
        if at >= bytes.len() {
            return true;
        }
        let constructor = match inside.last().and_then(|innermost| innermost.element) {
            Some(shared) => shared,
            None => {
                at += 1;
                bytes[at - 1]
            }
        };
        if constructor == 0x00 {
            // Its descriptor is a name or a number.
            let Some(&described) = bytes.get(at) else { return true };
            let is_name = matches!(described >> 4, 0x4 | 0x5 | 0x8 | 0xa | 0xb);
            let Some(end) = is_name.then(|| end_of(bytes, at)) else { return false };
            let Some(end) = end else { return true };
            at = end;
            descriptors += 1;
            continue;
        }
        let (width, is_array) = match constructor >> 4 {
            0xc => (1, false),
            0xd => (4, false),
            0xe => (1, true),
            0xf => (4, true),
            primitive => {
                let size = match primitive {
                    0x4 => 0,
                    0x5 => 1,
                    0x6 => 2,
                    0x7 => 4,
                    0x8 => 8,
                    0x9 => 16,
                    0xa => 1 + bytes.get(at).copied().map_or(0, usize::from),
                    0xb => 4 + number(bytes, at).unwrap_or(0) as usize,
                    // The client library will not read on.
                    _ => return true,
                };
                at = at.saturating_add(size);
                // Elements without a size would be gone through without an end.
                if size == 0
                    && let Some(innermost) = inside.last().filter(|it| it.element.is_some())
                {
                    at = innermost.end;
                }
                descriptors = 0;
                continue;
            }
        };
        let size = match width {
            1 => bytes.get(at).copied().map(usize::from),
            _ => number(bytes, at).map(|size| size as usize),
        };
        let Some(size) = size else { return true };
        let end = at.saturating_add(width).saturating_add(size);
        // Behind the size and the count.
        at = at.saturating_add(2 * width);
        let element = match is_array {
            true => {
                let Some(&shared) = bytes.get(at) else { return true };
                at += 1;
                Some(shared)
            }
            false => None,
        };
        for _ in 0..=descriptors {
            inside.push(Inside { end, element });
        }
        descriptors = 0;
    }
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
        messaging::{
            Body, Header, Message, Priority,
            message::{__private::Serializable, DecodeIntoMessage},
        },
        primitives::Value,
    };
    use proptest::prelude::*;
    use serde_amqp::{read::SliceReader, to_vec};

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

    /// Of the link with the handle 1.
    const TRANSFER: [u8; 8] = [0x00, 0x53, 0x14, 0xc0, 3, 1, 0x52, 1];

    fn transfer(body: &[u8]) -> Transfer {
        Transfer::read(body).expect("a transfer")
    }

    #[test]
    fn an_array_of_maps_is_a_list_of_the_same_maps() {
        let sent = [&TRANSFER[..], &dead_letter()].concat();
        let changed = readable(&sent, transfer(&sent)).expect("there is an array");
        let message = decoded(&changed);
        let annotations = message.message_annotations.unwrap().0;
        let values: Vec<_> = annotations.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values[0], Value::String("v".to_owned()));
        let Value::List(maps) = &values[1] else { panic!("{:?}", values[1]) };
        assert_eq!(maps.len(), 2);
        assert!(message.body.is_data() && message.header.unwrap().durable);
        assert_eq!(readable(&changed, transfer(&changed)), None, "there is none left");
    }

    #[test]
    fn an_empty_array_in_the_body_is_an_empty_list() {
        for empty in [&[0xe0, 1, 0][..], &[0xe0, 2, 0, 0xa1], &[0xf0, 0, 0, 0, 4, 0, 0, 0, 0]] {
            let pairs = [&[0xa1, 1, b'r'][..], empty, &[0xa1, 1, b'n', 0x53, 7]].concat();
            let map = [&[MAP_8, u8::try_from(pairs.len() + 1).unwrap(), 4][..], &pairs].concat();
            let sections = [0x00, 0x53, PROPERTIES, LIST_0, 0x00, 0x53, VALUE];
            let sent = [&TRANSFER[..], &sections, &map].concat();
            let changed = readable(&sent, transfer(&sent)).expect("there is an array");
            let Body::Value(body) = decoded(&changed).body else { panic!("a value") };
            let Value::Map(map) = body.0 else { panic!("a map") };
            assert_eq!(map.get(&Value::String("r".to_owned())), Some(&Value::List(Vec::new())));
            assert_eq!(map.get(&Value::String("n".to_owned())), Some(&Value::Ulong(7)));
        }
    }

    fn decoded(body: &[u8]) -> Message<Body<Value>> {
        let reader = SliceReader::new(&body[transfer(body).payload..]);
        Body::decode_message_from_reader(reader).unwrap()
    }

    fn encoded(header: Header) -> Vec<u8> {
        let message = Message::builder().header(header).data(&b"ok"[..]).build();
        [&TRANSFER[..], &to_vec(&Serializable(message)).unwrap()].concat()
    }

    #[test]
    fn a_priority_that_is_the_default_is_written_out_and_read_as_such() {
        for ttl in [None, Some(7), Some(70_000)] {
            let header = Header { durable: true, ttl, ..Header::default() };
            let silent = encoded(header.clone());
            assert_eq!(written_out(&silent, transfer(&silent)), None);
            assert_eq!(readable(&silent, transfer(&silent)), None);
            let sent = encoded(Header { delivery_count: WRITTEN_OUT, ..header.clone() });
            let sent = written_out(&sent, transfer(&sent)).expect("it is marked");
            assert_eq!(decoded(&sent).header, Some(header.clone()), "what the broker sees");
            assert_eq!(written_out(&sent, transfer(&sent)), None);
            let read = readable(&sent, transfer(&sent)).expect("it is written out");
            let marked = Header { delivery_count: WRITTEN_OUT, ..header };
            assert_eq!(decoded(&read).header, Some(marked));
            assert!(decoded(&read).body.is_data());
        }
        let other = encoded(Header { priority: Priority(3), ..Header::default() });
        let sent = written_out(&other, transfer(&other)).expect("it is not durable");
        assert!(sent.ends_with(&[
            FALSE, 0x50, 3, NULL, NULL, 0x70, 0, 0, 0, 0, 0, 0x53, 0x75, 0xa0, 2, b'o', b'k'
        ]));
        assert_eq!(written_out(&sent, transfer(&sent)), None);
        assert_eq!(readable(&other, transfer(&other)), None);
    }

    /// A list with `levels` lists within each other, as RabbitMQ writes them.
    fn nested(levels: usize) -> Vec<u8> {
        (1..levels).fold(vec![LIST_0], |inner, _| {
            let size = u32::try_from(inner.len() + 4).unwrap().to_be_bytes();
            [&[LIST_32][..], &size, &[0, 0, 0, 1], &inner].concat()
        })
    }

    #[test]
    fn an_array_that_claims_to_be_endless_is_left_at_its_end() {
        let endless = [0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x50];
        for times in [1, 100] {
            assert!(is_shallow(&endless.repeat(times)));
        }
    }

    #[test]
    fn what_goes_deep_is_broken_off() {
        let described = |levels| [[0x00, 0x53, 0x01].repeat(levels), vec![NULL]].concat();
        let arrays =
            [&[0xf0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1][..], &[0xf0].repeat(900)].concat();
        let deep = [
            nested(MOST_LEVELS + 2),
            nested(20_000),
            nested(20_000)[..50_000].to_vec(),
            described(MOST_LEVELS + 1),
            vec![0x00; 100_000],
            [[0xe0, 0xff, 1].repeat(80), vec![NULL]].concat(),
            arrays,
        ];
        for value in deep {
            let sections = [&[0x00, 0x53, MESSAGE_ANNOTATIONS], &value[..]].concat();
            let sent = [&TRANSFER[..], &sections].concat();
            let instead = readable(&sent, transfer(&sent)).expect("it is deep");
            assert_eq!(instead, [&TRANSFER[..], &[NONSENSE]].concat());
        }
        for value in [nested(MOST_LEVELS), described(MOST_LEVELS - 1)] {
            let sections = [&[0x00, 0x53, MESSAGE_ANNOTATIONS], &value[..]].concat();
            assert!(is_shallow(&sections), "{} bytes", value.len());
        }
        assert!(is_shallow(&dead_letter()));
    }

    #[test]
    fn a_transfer_says_whether_it_goes_on() {
        for (last, more) in
            [(&[0x41][..], true), (&[0x56, 1], true), (&[0x42], false), (&[], false)]
        {
            let mut fields = vec![0x70, 0, 0, 1, 0, 0x43, 0x40, 0x43, 0x42];
            fields.extend(last);
            let count = if last.is_empty() { 5 } else { 6 };
            let mut body = vec![0x00, 0x53, 0x14, LIST_8];
            body.extend([u8::try_from(fields.len() + 1).unwrap(), count]);
            body.extend(fields);
            assert_eq!((transfer(&body).handle, transfer(&body).more), (256, more));
        }
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
            if let Some(transfer) = Transfer::read(&sent) {
                let _either = readable(&sent, transfer);
                let _either = written_out(&sent, transfer);
            }
        }
    }
}
