//! Frames as they pass: what is read off them, and the name that is changed in them.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use bytes::{BufMut, BytesMut};
use fe2o3_amqp_types::{
    definitions::Role,
    performatives::{Attach, Begin, Flow, Open},
};
use serde::{Deserialize, Serialize};
use serde_amqp::{from_slice, to_vec};

use crate::{
    observed::Observed,
    sections::{Transfer, readable, written_out},
};

/// The name of both management links on the wire.
pub(crate) const PAIR: &str = "management-link-pair";

/// The name that the second of them, the receiver, has on this side.
pub(crate) const PAIR_RECEIVER: &str = "management-link-pair#receiver";

/// What is added to a credit that the broker is asked to repeat when it has heard of it.
///
/// On this side so much more is granted, until the next time. The client library takes what was under
/// way when credit was taken back for a violation of the protocol, and so it is none.
pub(crate) const ASKING: u32 = 0x4000_0000;

/// The smallest frame, and its header, in bytes.
const HEADER: usize = 8;

/// By how much a frame may grow that goes out, in bytes: a header at most.
const OUTGOING_MARGIN: u32 = 64;

/// By how much a frame may grow that comes in, in bytes: a byte for each death of a message, and a
/// header.
const INCOMING_MARGIN: u32 = 4 * 1024;

/// The smallest limit of frames that a peer may have, in bytes; part 2, section 2.7.1.
const SMALLEST_MAX: u32 = 512;

/// What a header of the protocol names, after those of encryption and authentication.
const AMQP: u8 = 0;

/// The largest frame that is looked into, in bytes: more than is ever agreed on.
const LARGEST: usize = 4 * 1024 * 1024;

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Incoming,
    Outgoing,
}

/// What a frame is about, by the code of its performative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Begin,
    Attach,
    Flow,
    Transfer,
    Close,
}

impl Kind {
    /// Of frames that are looked into in this direction.
    const fn of(code: u8, direction: Direction) -> Option<Self> {
        Some(match (code, direction) {
            (0x12, _) => Self::Attach,
            (0x10, _) => Self::Open,
            (0x11, Direction::Incoming) => Self::Begin,
            (0x13, _) => Self::Flow,
            (0x14, _) => Self::Transfer,
            (0x18, Direction::Incoming) => Self::Close,
            _ => return None,
        })
    }
}

/// Bytes of one direction: in front those that may pass, behind them the beginning of a frame that
/// is looked into and not whole yet.
#[derive(Debug)]
pub(crate) struct Frames {
    direction: Direction,
    bytes: BytesMut,
    ready: usize,
    /// Of the frame that is passing, what has not come yet.
    passing: usize,
    links: Links,
}

/// Links of note, by channel and handle.
#[derive(Debug, Default)]
struct Links {
    /// Over which the broker sends, with their names.
    sending: HashMap<(u16, u32), String>,
    /// Over which only a part of a message has passed.
    unfinished: HashSet<(u16, u32)>,
}

impl Frames {
    pub(crate) fn new(direction: Direction) -> Self {
        Self { direction, bytes: BytesMut::new(), ready: 0, passing: 0, links: Links::default() }
    }

    /// How many bytes may pass.
    pub(crate) const fn ready(&self) -> usize {
        self.ready
    }

    /// Takes `count` of them.
    pub(crate) fn take(&mut self, count: usize) -> BytesMut {
        self.ready -= count;
        self.bytes.split_to(count)
    }

    /// Where more is put; [`scan`](Self::scan) looks at it.
    pub(crate) fn buffer(&mut self, room: usize) -> &mut BytesMut {
        self.bytes.reserve(room);
        &mut self.bytes
    }

    /// Looks at what has come.
    ///
    /// # Errors
    ///
    /// When it is no frame of AMQP 1.0.
    pub(crate) fn scan(&mut self, observed: &Observed) -> io::Result<()> {
        loop {
            let waiting = &self.bytes[self.ready..];
            if waiting.is_empty() {
                return Ok(());
            }
            if self.passing > 0 {
                let count = self.passing.min(waiting.len());
                self.passing -= count;
                self.ready += count;
                continue;
            }
            if waiting.len() < HEADER {
                return Ok(());
            }
            if waiting.starts_with(b"AMQP") {
                if self.direction == Direction::Incoming && waiting[4] == AMQP {
                    observed.note_welcome();
                }
                self.ready += HEADER;
                continue;
            }
            let size =
                u32::from_be_bytes([waiting[0], waiting[1], waiting[2], waiting[3]]) as usize;
            let body = usize::from(waiting[4]) * 4;
            if size < HEADER || body < HEADER || body > size {
                return Err(invalid("a frame whose lengths cannot be"));
            }
            let is_sasl = waiting[5] != 0;
            // A described type: 0x00, a small ulong, the code of the performative.
            if is_sasl || size < body + 3 {
                self.passing = size;
                continue;
            }
            let Some(&[described, small_ulong, code]) = waiting.get(body..body + 3) else {
                return Ok(());
            };
            let kind = match (described, small_ulong) {
                (0x00, 0x53) => Kind::of(code, self.direction),
                _ => None,
            };
            let Some(kind) = kind else {
                self.passing = size;
                continue;
            };
            if size > LARGEST {
                return Err(invalid("a frame that is far too large for what it is"));
            }
            if waiting.len() < size {
                return Ok(());
            }
            let channel = u16::from_be_bytes([waiting[6], waiting[7]]);
            let frame = &waiting[body..size];
            let changed = if kind == Kind::Transfer {
                pass(frame, channel, self.direction, &mut self.links)
            } else {
                look(kind, frame, channel, self.direction, &mut self.links, observed)?
            };
            match changed {
                None => self.ready += size,
                Some(instead) => self.replace(size, body, &instead)?,
            }
        }
    }

    /// Puts another body into the frame behind what is ready.
    fn replace(&mut self, size: usize, body: usize, with: &[u8]) -> io::Result<()> {
        let mut frame = self.bytes.split_off(self.ready);
        let behind = frame.split_off(size);
        let length = u32::try_from(body + with.len()).map_err(|_| invalid("a frame too large"))?;
        self.bytes.put_u32(length);
        self.bytes.extend_from_slice(&frame[4..body]);
        self.bytes.extend_from_slice(with);
        self.bytes.extend_from_slice(&behind);
        self.ready += body + with.len();
        Ok(())
    }
}

/// A flow without what it says of a link over which the broker sends. The client library takes the
/// broker's count of deliveries for its own, although some of them are still on their way to it, and
/// then counts those twice.
fn of_session(flow: &Flow) -> Flow {
    Flow {
        handle: None,
        delivery_count: None,
        link_credit: None,
        available: None,
        drain: false,
        properties: None,
        ..flow.clone()
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A transfer; what it gives stands in its place. Only the first of a message has its header.
fn pass(body: &[u8], channel: u16, direction: Direction, links: &mut Links) -> Option<Vec<u8>> {
    let transfer = Transfer::read(body)?;
    let link = (channel, transfer.handle);
    let is_first = match transfer.more {
        true => links.unfinished.insert(link),
        false => links.unfinished.is_empty() || !links.unfinished.remove(&link),
    };
    match direction {
        _ if !is_first => None,
        Direction::Incoming => readable(body, transfer),
        Direction::Outgoing => written_out(body, transfer),
    }
}

/// Looks into the body of a frame; what it gives stands in its place.
fn look(
    kind: Kind,
    body: &[u8],
    channel: u16,
    direction: Direction,
    links: &mut Links,
    observed: &Observed,
) -> io::Result<Option<Vec<u8>>> {
    fn read<'de, T: Deserialize<'de>>(body: &'de [u8]) -> io::Result<T> {
        from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
    fn written(performative: &impl Serialize) -> io::Result<Vec<u8>> {
        to_vec(performative).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
    match kind {
        Kind::Open => {
            let mut open: Open = read(body)?;
            let margin = match direction {
                Direction::Incoming => {
                    observed.note_open(&open);
                    OUTGOING_MARGIN
                }
                Direction::Outgoing => INCOMING_MARGIN,
            };
            let most = open.max_frame_size.0;
            open.max_frame_size.0 = most.saturating_sub(margin).max(most.min(SMALLEST_MAX));
            return written(&open).map(Some);
        }
        Kind::Begin => {
            links.sending.retain(|(other, _), _| *other != channel);
            observed.note_window(read::<Begin>(body)?.incoming_window);
        }
        Kind::Flow => {
            let mut flow: Flow = read(body)?;
            if direction == Direction::Incoming {
                observed.note_window(flow.incoming_window);
                let link = flow.handle.as_ref().map(|handle| (channel, handle.0));
                if let Some(name) = link.and_then(|link| links.sending.get(&link)) {
                    if let Some(credit) = flow.link_credit {
                        observed.note_credit(name, credit);
                    }
                    return written(&of_session(&flow)).map(Some);
                }
            } else if let Some(credit) = flow.link_credit.and_then(|it| it.checked_sub(ASKING)) {
                flow.link_credit = Some(credit);
                flow.echo = true;
                return written(&flow).map(Some);
            }
        }
        Kind::Close => observed.note_close(&read(body)?),
        Kind::Transfer => {}
        Kind::Attach => {
            let mut attach: Attach = read(body)?;
            let link = (channel, attach.handle.0);
            links.unfinished.remove(&link);
            if direction == Direction::Incoming {
                match attach.role {
                    Role::Sender => links.sending.insert(link, attach.name.clone()),
                    Role::Receiver => links.sending.remove(&link),
                };
            }
            let (here, there) = match direction {
                Direction::Outgoing => (PAIR_RECEIVER, PAIR),
                // The broker's sender is the receiver on this side.
                Direction::Incoming if attach.role == Role::Sender => (PAIR, PAIR_RECEIVER),
                Direction::Incoming => return Ok(None),
            };
            if attach.name == here {
                there.clone_into(&mut attach.name);
                return written(&attach).map(Some);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fe2o3_amqp_types::{definitions::Handle, messaging::Source};
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn attach(name: &str, role: Role) -> Attach {
        Attach {
            name: name.to_owned(),
            handle: Handle(0),
            role,
            snd_settle_mode: Default::default(),
            rcv_settle_mode: Default::default(),
            source: Some(Box::new(Source::default())),
            target: None,
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: Some(0),
            max_message_size: None,
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        }
    }

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(HEADER + body.len()).unwrap();
        let mut frame = size.to_be_bytes().to_vec();
        frame.extend([2, kind, 0, 7]);
        frame.extend(body);
        frame
    }

    fn through(direction: Direction, observed: &Observed, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut frames, mut passed) = (Frames::new(direction), Vec::new());
        for piece in pieces {
            frames.buffer(piece.len()).extend_from_slice(piece);
            frames.scan(observed)?;
            let count = frames.ready();
            passed.extend_from_slice(&frames.take(count));
        }
        Ok(passed)
    }

    #[test]
    fn the_second_management_link_is_renamed_both_ways_and_no_other() {
        let observed = Observed::default();
        let here = frame(0, &to_vec(&attach(PAIR_RECEIVER, Role::Receiver)).unwrap());
        let there = frame(0, &to_vec(&attach(PAIR, Role::Receiver)).unwrap());
        assert_eq!(through(Direction::Outgoing, &observed, &[&here]).unwrap(), there);
        let answer = frame(0, &to_vec(&attach(PAIR, Role::Sender)).unwrap());
        let known = frame(0, &to_vec(&attach(PAIR_RECEIVER, Role::Sender)).unwrap());
        assert_eq!(through(Direction::Incoming, &observed, &[&answer]).unwrap(), known);
        for (name, role) in [(PAIR, Role::Receiver), ("other", Role::Sender)] {
            let other = frame(0, &to_vec(&attach(name, role)).unwrap());
            assert_eq!(through(Direction::Incoming, &observed, &[&other]).unwrap(), other);
        }
    }

    /// What is put into a frame must have room in it.
    #[test]
    fn each_side_is_told_of_less_room_than_the_other_has() {
        for (direction, margin) in
            [(Direction::Incoming, OUTGOING_MARGIN), (Direction::Outgoing, INCOMING_MARGIN)]
        {
            for (most, told) in
                [(131_072, 131_072 - margin), (512, 512), (600, 600 - margin.min(88))]
            {
                let mut open = open();
                open.max_frame_size.0 = most;
                let sent = frame(0, &to_vec(&open).unwrap());
                let passed = through(direction, &Observed::default(), &[&sent]).unwrap();
                let open: Open = from_slice(&passed[HEADER..]).unwrap();
                assert_eq!(open.max_frame_size.0, told);
            }
        }
    }

    fn open() -> Open {
        Open {
            container_id: "broker".to_owned(),
            hostname: None,
            max_frame_size: Default::default(),
            channel_max: Default::default(),
            idle_time_out: None,
            outgoing_locales: None,
            incoming_locales: None,
            offered_capabilities: None,
            desired_capabilities: None,
            properties: None,
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let observed = Observed::default();
        for hostile in
            [[0, 0, 0, 7, 2, 0, 0, 0], [0, 0, 0, 9, 1, 0, 0, 0], [0, 0, 0, 9, 3, 0, 0, 0]]
        {
            through(Direction::Incoming, &observed, &[&hostile]).unwrap_err();
        }
        let mut endless = vec![0x7f, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0x00, 0x53, 0x12];
        through(Direction::Incoming, &observed, &[&endless]).unwrap_err();
        // What is not looked into may be as large as was agreed on.
        endless[10] = 0x15;
        assert_eq!(through(Direction::Incoming, &observed, &[&endless]).unwrap(), endless);
    }

    #[test]
    fn a_credit_that_shall_be_repeated_is_itself_on_the_wire() {
        let flow = |credit, echo| Flow {
            next_incoming_id: Some(1),
            incoming_window: 10,
            next_outgoing_id: 1,
            outgoing_window: 10,
            handle: Some(Handle(0)),
            delivery_count: Some(7),
            link_credit: Some(credit),
            available: None,
            drain: false,
            echo,
            properties: None,
        };
        let observed = Observed::default();
        for (here, there, echo) in [(ASKING, 0, true), (ASKING + 5, 5, true), (5, 5, false)] {
            let here = frame(0, &to_vec(&flow(here, false)).unwrap());
            let there = frame(0, &to_vec(&flow(there, echo)).unwrap());
            assert_eq!(through(Direction::Outgoing, &observed, &[&here]).unwrap(), there);
        }
    }

    #[test]
    fn who_granted_credit_hears_of_the_answer_to_it_alone() {
        let observed = Arc::new(Observed::default());
        let (one, other) = (observed.echo("one", 0), observed.echo("other", 0));
        let mut one_attach = attach("one", Role::Sender);
        one_attach.handle = Handle(1);
        let flow = |handle, credit| Flow {
            next_incoming_id: Some(1),
            incoming_window: 10,
            next_outgoing_id: 1,
            outgoing_window: 10,
            handle: Some(Handle(handle)),
            delivery_count: Some(7),
            link_credit: Some(credit),
            available: None,
            drain: false,
            echo: false,
            properties: None,
        };
        let before = [
            frame(0, &to_vec(&one_attach).unwrap()),
            frame(0, &to_vec(&attach("other", Role::Sender)).unwrap()),
            frame(0, &to_vec(&flow(1, 3)).unwrap()),
            frame(0, &to_vec(&flow(2, 0)).unwrap()),
        ];
        let answer = frame(0, &to_vec(&flow(1, 0)).unwrap());
        let pieces: Vec<&[u8]> = before.iter().map(|piece| &piece[..]).collect();
        through(Direction::Incoming, &observed, &pieces).unwrap();
        assert!(one.heard().now_or_never().is_none(), "it is another credit, or another's answer");
        let pieces: Vec<&[u8]> = pieces.into_iter().chain([&answer[..]]).collect();
        through(Direction::Incoming, &observed, &pieces).unwrap();
        assert_eq!(one.heard().now_or_never(), Some(()));
        assert_eq!(other.heard().now_or_never(), None);
    }

    #[test]
    fn a_window_of_zero_is_an_alarm() {
        let observed = Observed::default();
        let blocked = observed.blocked();
        for (window, expected) in [(0, true), (0, true), (400, false)] {
            observed.note_window(window);
            assert_eq!(*blocked.borrow(), expected);
        }
    }

    proptest! {
        /// However the bytes are cut, what passes is the same.
        #[test]
        fn frames_pass_whole_in_any_pieces(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
            cuts in prop::collection::vec(1_usize..50, 1..200),
        ) {
            let mut sent = b"AMQP\x03\x01\x00\x00".to_vec();
            let mut expected = sent.clone();
            for (number, body) in bodies.iter().enumerate() {
                // What looks like something to look into is put in on purpose only.
                let mut body = body.clone();
                if body.starts_with(&[0x00, 0x53]) {
                    body[1] = 0x80;
                }
                sent.extend(frame(u8::from(number % 3 == 0), &body));
                expected.extend(frame(u8::from(number % 3 == 0), &body));
                if number % 4 == 0 {
                    let answer = to_vec(&attach(PAIR, Role::Sender)).unwrap();
                    let known = to_vec(&attach(PAIR_RECEIVER, Role::Sender)).unwrap();
                    sent.extend(frame(0, &answer));
                    expected.extend(frame(0, &known));
                }
            }
            let mut pieces = Vec::new();
            let mut rest = &sent[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            let passed = through(Direction::Incoming, &Observed::default(), &pieces).unwrap();
            prop_assert_eq!(passed, expected);
        }
    }
}
