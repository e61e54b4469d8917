//! A reply of many items, sent as far as its caller allows.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use postrider_core::{Confirm, Message};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    method::Items,
    replies::{Replied, Replies, unsendable},
};
use crate::{
    codec::Codec,
    consuming::catch_panic,
    handler::HandlerError,
    headers,
    rpc::{control::count_header, wire},
};

/// How often a stream that sends nothing says that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// One streamed reply.
pub(super) struct Streaming<'a> {
    pub(super) replies: &'a Replies,
    pub(super) request: &'a Message,
    pub(super) codec: Codec,
    /// Where credit is taken in.
    pub(super) control_queue: &'a str,
    /// Another one for each run of a request.
    pub(super) run: String,
    pub(super) credit: watch::Receiver<u64>,
    pub(super) cancellation: &'a CancellationToken,
}

/// How the sending of a stream ended.
#[derive(Debug)]
pub(super) enum Sent {
    /// The request is done with: another run could not take it up.
    Done,
    /// So it is, and its caller was told why it ended.
    Failed(HandlerError),
    /// It was cancelled on the way.
    CalledOff,
}

/// Why a stream is not sent on.
enum Stopped {
    /// It is cancelled.
    CalledOff,
    /// Nobody reads it any more, or what was sent is lost.
    Left,
    /// It failed by itself.
    Failed(HandlerError),
}

/// The verdicts that are to come.
type Confirms = FuturesUnordered<Confirm>;

impl Streaming<'_> {
    /// Sends the items, and how they ended.
    pub(super) async fn send(self, mut items: Items) -> Sent {
        let mut confirms = Confirms::new();
        let mut seq = 0;
        let ended = loop {
            let sent = async {
                let Some(item) = self.next(&mut items, &mut confirms).await? else {
                    return Ok(false);
                };
                self.wait_for_credit(seq, &mut confirms).await?;
                let frame = Message::new(item).with_content_type(self.codec.content_type());
                self.frame(Some(seq), frame, &mut confirms).await.map(|()| true)
            };
            match sent.await {
                Ok(true) => seq += 1,
                Ok(false) => break Ok(()),
                Err(stopped) => break Err(stopped),
            }
        };
        let (last, outcome) = match ended {
            Ok(()) => {
                (self.nothing().map(|end| end.with_header(headers::STREAM_END, true)), Sent::Done)
            }
            Err(Stopped::Failed(error)) => {
                (self.replies.written(self.codec, Err(&error)), Sent::Failed(error))
            }
            Err(Stopped::CalledOff) => return Sent::CalledOff,
            Err(Stopped::Left) => (None, Sent::Done),
        };
        if let Some(last) = last
            && self.frame(Some(seq), last, &mut confirms).await.is_ok()
        {
            while let Some(verdict) = confirms.next().await {
                if let Err(error) = verdict.into_result() {
                    self.replies.failed(&error);
                }
            }
        }
        outcome
    }

    /// The next item, however long it takes.
    async fn next(
        &self,
        items: &mut Items,
        confirms: &mut Confirms,
    ) -> Result<Option<Bytes>, Stopped> {
        loop {
            tokio::select! {
                biased;
                () = self.cancellation.cancelled() => return Err(Stopped::CalledOff),
                stopped = self.refused(confirms) => return Err(stopped),
                item = catch_panic(items.try_next()) => return item.map_err(Stopped::Failed),
                () = sleep(SIGN_OF_LIFE) => {}
            }
            self.sign_of_life(confirms).await?;
        }
    }

    /// Waits until the frame `seq` may be sent.
    async fn wait_for_credit(&self, seq: u64, confirms: &mut Confirms) -> Result<(), Stopped> {
        let mut credit = self.credit.clone();
        loop {
            tokio::select! {
                biased;
                () = self.cancellation.cancelled() => return Err(Stopped::CalledOff),
                stopped = self.refused(confirms) => return Err(stopped),
                granted = credit.wait_for(|granted| *granted > seq) => {
                    // Without its sender the call is not known any more.
                    return granted.map(drop).map_err(|_forgotten| Stopped::Left);
                }
                () = sleep(SIGN_OF_LIFE) => {}
            }
            self.sign_of_life(confirms).await?;
        }
    }

    /// Ends when a frame was not taken; a caller that is gone is found out so.
    async fn refused(&self, confirms: &mut Confirms) -> Stopped {
        while let Some(verdict) = confirms.next().await {
            if let Err(error) = verdict.into_result()
                && self.replies.failed(&error) == Replied::Done
            {
                return Stopped::Left;
            }
        }
        pending().await
    }

    async fn sign_of_life(&self, confirms: &mut Confirms) -> Result<(), Stopped> {
        if self.replies.are_unread(self.request).await {
            return Err(Stopped::Left);
        }
        let Some(nothing) = self.nothing() else { return Ok(()) };
        self.frame(None, nothing, confirms).await
    }

    /// A frame without an item; plain clients can read it too.
    fn nothing(&self) -> Option<Message> {
        let body = wire::encode_success(self.codec, self.replies.limits, &()).ok()?;
        self.replies.written(self.codec, Ok(&body))
    }

    async fn frame(
        &self,
        seq: Option<u64>,
        mut frame: Message,
        confirms: &mut Confirms,
    ) -> Result<(), Stopped> {
        frame.reply_to = Some(self.control_queue.to_owned().into());
        frame.headers.set(headers::STREAM_RUN, self.run.clone());
        if let Some(seq) = seq {
            frame.headers.set(headers::STREAM_SEQ, count_header(seq));
        }
        match self.replies.send(self.request, frame).await {
            Ok(confirm) => {
                confirms.extend(confirm);
                Ok(())
            }
            Err(error) => match unsendable(&error) {
                Some(told) => Err(Stopped::Failed(told)),
                None => {
                    self.replies.failed(&error);
                    Err(Stopped::Left)
                }
            },
        }
    }
}
