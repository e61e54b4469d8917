//! What clients said about calls: which of them were given up, and how far streams may go.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use postrider_core::{Consumer, Envelope};
use tokio::sync::watch;

use crate::{
    handler::Context,
    rpc::control::{CallKey, Told},
};

/// How many calls are remembered that were given up before their requests came. Every server hears
/// of every call of its service that is given up, and has the request of few of them.
const MOST_GIVEN_UP: usize = 4_096;

/// The calls whose requests a server has in hand, and those that it need not run any more.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    at_work: HashMap<CallKey, AtWork>,
    given_up: GivenUp,
}

#[derive(Debug)]
struct AtWork {
    context: Context,
    credit: Option<watch::Sender<u64>>,
}

/// The latest calls that were given up.
#[derive(Debug, Default)]
struct GivenUp {
    known: HashSet<CallKey>,
    oldest_first: VecDeque<CallKey>,
}

impl GivenUp {
    fn insert(&mut self, key: CallKey) {
        if self.known.insert(key.clone()) {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > MOST_GIVEN_UP
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl Calls {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the request of `context` in hand; nothing when its call was given up before.
    pub(super) fn begin<'a>(
        &'a self,
        envelope: &Arc<Envelope>,
        context: &Context,
        credit: Option<watch::Sender<u64>>,
    ) -> Option<InHand<'a>> {
        let key = CallKey::of(envelope);
        if let Some(key) = &key {
            let mut state = self.state();
            if state.given_up.known.contains(key) {
                return None;
            }
            // A request that comes again while it is at work is heard of as the later one.
            state.at_work.insert(key.clone(), AtWork { context: context.clone(), credit });
        }
        Some(InHand { calls: self, key, context: context.clone() })
    }

    /// Takes in what a client says.
    pub(super) fn hear(&self, envelope: &Arc<Envelope>) {
        let (Some(told), Some(key)) = (Told::read(&envelope.message), CallKey::of(envelope)) else {
            tracing::debug!(message_type = ?envelope.message.message_type, "nothing is told by this");
            return;
        };
        let mut state = self.state();
        match told {
            Told::GivenUp => match state.at_work.remove(&key) {
                Some(call) => {
                    drop(state);
                    call.context.cancel();
                }
                // Whatever else somebody put into it is not kept.
                None => state.given_up.insert(key.alone()),
            },
            Told::Credit(frames) => {
                if let Some(AtWork { credit: Some(credit), .. }) = state.at_work.get(&key) {
                    // Told again or overtaken, it is the same or less.
                    credit.send_if_modified(|granted| {
                        let more = frames > *granted;
                        *granted = frames.max(*granted);
                        more
                    });
                }
            }
        }
    }
}

/// Takes in what clients say until the consumer ends.
pub(super) async fn listen(mut control: Consumer, calls: Arc<Calls>) {
    while let Some(told) = control.recv().await {
        match told {
            Ok(told) => {
                calls.hear(told.envelope());
                told.ack();
            }
            Err(error) => {
                tracing::error!(%error, "calls that are given up are not heard of any more");
            }
        }
    }
}

/// A request at work.
#[derive(Debug)]
pub(super) struct InHand<'a> {
    calls: &'a Calls,
    key: Option<CallKey>,
    context: Context,
}

impl InHand<'_> {
    /// Whether its caller gave it up.
    pub(super) fn is_given_up(&self) -> bool {
        self.key.as_ref().is_some_and(|key| !self.calls.state().at_work.contains_key(key))
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            let mut state = self.calls.state();
            if state.at_work.get(key).is_some_and(|call| call.context.is(&self.context)) {
                state.at_work.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Address, DeliveryInfo, Env, Message};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::rpc::control;

    fn request(id: &str) -> Arc<Envelope> {
        let message = Message::new("").with_correlation_id(id.to_owned()).with_reply_to("mine");
        Arc::new(Envelope::new(Address::queue("rpc_math"), message))
    }

    fn context(envelope: &Arc<Envelope>) -> Context {
        let info = DeliveryInfo::first("rpc_math".into());
        Context::new(Arc::clone(envelope), info, Env::simulated(1), &CancellationToken::new())
    }

    fn given_up(id: &str) -> Arc<Envelope> {
        Arc::new(control::cancel("rpc_math".into(), id.to_owned(), "mine"))
    }

    #[test]
    fn a_call_that_is_given_up_is_told_to_its_handler_or_not_begun() {
        let calls = Calls::default();
        let (request, context) = (request("1"), context(&request("1")));
        let in_hand = calls.begin(&request, &context, None).unwrap();
        assert!(!in_hand.is_given_up());
        calls.hear(&given_up("1"));
        assert!(in_hand.is_given_up() && context.cancellation().is_cancelled());
        drop(in_hand);

        calls.hear(&given_up("2"));
        let late = self::request("2");
        assert!(calls.begin(&late, &self::context(&late), None).is_none());
    }

    #[test]
    fn a_request_that_came_twice_leaves_when_its_own_run_ends() {
        let calls = Calls::default();
        let request = request("1");
        let (first, second) = (context(&request), context(&request));
        let one = calls.begin(&request, &first, None).unwrap();
        let two = calls.begin(&request, &second, None).unwrap();
        drop(one);
        calls.hear(&given_up("1"));
        assert!(two.is_given_up() && second.cancellation().is_cancelled());
        drop(two);
        assert!(calls.state().at_work.is_empty());
    }

    #[test]
    fn a_credit_only_grows() {
        let calls = Calls::default();
        let request = request("1");
        let (credit, granted) = watch::channel(32);
        let in_hand = calls.begin(&request, &context(&request), Some(credit));
        for frames in [48, 40] {
            let queue = "rpc_math.control.1".to_owned();
            calls.hear(&Arc::new(control::credit(queue, "1".to_owned(), "mine", frames)));
            assert_eq!(*granted.borrow(), 48);
        }
        drop(in_hand);
    }

    #[test]
    fn of_a_call_that_was_given_up_only_its_name_is_remembered() {
        let calls = Calls::default();
        let mut told = Envelope::clone(&given_up("1"));
        told.message.body = vec![0; 1 << 20].into();
        let told = Arc::new(told);
        calls.hear(&told);
        assert_eq!(Arc::strong_count(&told), 1);
        let late = request("1");
        assert!(calls.begin(&late, &context(&late), None).is_none());
    }

    #[test]
    fn the_memory_of_what_was_given_up_is_bounded() {
        let calls = Calls::default();
        for id in 0..=MOST_GIVEN_UP {
            calls.hear(&given_up(&id.to_string()));
        }
        let oldest = request("0");
        assert!(calls.begin(&oldest, &context(&oldest), None).is_some());
        assert_eq!(calls.state().given_up.known.len(), MOST_GIVEN_UP);
    }
}
