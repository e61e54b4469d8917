//! The broker under test, driven as the model is.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use postrider_core::{
    Address, Binding, Consumer, ConsumerOptions, DeadLetter, Delivery, Env, Envelope, Exchange,
    Message, Overflow, Publisher, PublisherOptions, Queue, Topology, Transport, Verdict,
};
use postrider_transport_inmemory::{Broker, InMemory};
use proptest_state_machine::StateMachineTest;
use tokio::runtime::Runtime;

use crate::reference::{FANOUT, How, Model, QUEUES, Shown, Spec, Transition};

pub(crate) struct BrokerTest;

pub(crate) struct System {
    consumers: Vec<Consumer>,
    held: Vec<Delivery>,
    publisher: Arc<dyn Publisher>,
    /// The last one only watches.
    connections: [InMemory; 3],
    sent: u32,
    runtime: Arc<Runtime>,
}

fn queue(spec: &Spec) -> Queue {
    let mut queue = match spec.max_priority {
        Some(highest) => Queue::classic(spec.name).with_max_priority(highest),
        None => Queue::durable(spec.name),
    };
    queue.delivery_limit = spec.delivery_limit;
    queue.message_ttl = spec.ttl.map(Duration::from_millis);
    queue.max_length = spec.max_length.map(|most| most as u64);
    queue.overflow = if spec.reject_publish { Overflow::RejectPublish } else { Overflow::DropHead };
    queue.single_active_consumer = spec.single_active;
    queue.dead_letter =
        spec.dead.map(|dead| DeadLetter::to("").with_routing_key(QUEUES[dead].name));
    queue
}

fn topology() -> Topology {
    let mut topology = Topology::new().exchange(Exchange::fanout("fanout"));
    for spec in &QUEUES {
        topology = topology.queue(queue(spec));
    }
    for target in FANOUT {
        topology = topology.bind(Binding::queue("fanout", QUEUES[target].name, ""));
    }
    topology
}

impl System {
    async fn publish(&mut self, transition: &Transition) -> Shown {
        let Transition::Publish { queue, priority, ttl, delay } = transition else {
            return Shown::Nothing;
        };
        let address = match queue {
            Some(queue) => Address::queue(QUEUES[*queue].name),
            None => Address::exchange("fanout", ""),
        };
        let mut message = Message::new(self.sent.to_string());
        self.sent += 1;
        message.priority = *priority;
        message.ttl = ttl.map(Duration::from_millis);
        let envelope = Envelope::new(address, message).after(Duration::from_millis(*delay));
        match self.publisher.send(envelope).await.expect("sent").await {
            Verdict::Accepted => Shown::Verdict { accepted: true },
            Verdict::Rejected(_) => Shown::Verdict { accepted: false },
            verdict => panic!("no such verdict was due: {verdict:?}"),
        }
    }

    fn receive(&mut self, index: usize) -> Shown {
        let Some(delivery) = self.consumers[index].recv().now_or_never() else {
            return Shown::NoDelivery;
        };
        let delivery = delivery.expect("it goes on").expect("it is not cancelled");
        let id = std::str::from_utf8(&delivery.message().body).expect("text");
        let info = delivery.info();
        assert_eq!(info.redelivered, info.attempt > 1, "redelivered is said from the second time");
        let shown = Shown::Delivery {
            id: id.parse().expect("a number"),
            attempt: info.attempt,
            failures: info.failures,
        };
        self.held.push(delivery);
        shown
    }

    fn settle(&mut self, index: usize, how: How) {
        let delivery = self.held.remove(index);
        match how {
            How::Ack => delivery.ack(),
            How::Retry(after) => delivery.retry(Duration::from_millis(after)),
            How::Reject => delivery.reject("the test says so"),
            How::Release => delivery.release(),
            How::Abandon => drop(delivery),
        }
    }

    async fn apply(&mut self, before: (Option<usize>, Option<usize>), step: &Transition) -> Shown {
        let (consumer, held) = before;
        match step {
            Transition::Publish { .. } => return self.publish(step).await,
            Transition::Attach { connection, queue, prefetch } => {
                let options = ConsumerOptions::default().with_prefetch(*prefetch);
                let consumer = self.connections[*connection]
                    .consumer(QUEUES[*queue].name, options)
                    .await
                    .expect("consuming");
                self.consumers.push(consumer);
            }
            Transition::Drop { .. } => drop(self.consumers.remove(consumer.expect("one"))),
            Transition::Receive { .. } => return self.receive(consumer.expect("one")),
            Transition::Settle { how, .. } => self.settle(held.expect("one"), *how),
            Transition::Lose { connection } => self.connections[*connection].drop_connection(),
            Transition::Advance { millis } => {
                tokio::time::sleep(Duration::from_millis(*millis)).await;
            }
            Transition::Purge { queue } => {
                let purged = self.connections[2].purge(QUEUES[*queue].name).await;
                return Shown::Purged(purged.expect("purged"));
            }
        }
        Shown::Nothing
    }
}

impl StateMachineTest for BrokerTest {
    type SystemUnderTest = System;
    type Reference = Model;

    fn init_test(_: &Model) -> System {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map(Arc::new)
            .expect("a runtime");
        let (connections, publisher) = runtime.block_on(async {
            let broker = Broker::new(Env::simulated(0));
            let connections = [(); 3].map(|()| InMemory::connect_to(&broker).expect("connected"));
            connections[2].declare(&topology()).await.expect("declared");
            let publisher = connections[2].publisher(PublisherOptions::default()).await;
            (connections, publisher.expect("opened"))
        });
        let (consumers, held) = (Vec::new(), Vec::new());
        System { consumers, held, publisher, connections, sent: 0, runtime }
    }

    fn apply(mut system: System, after: &Model, step: Transition) -> System {
        // The index that a transition drew counts what there was before it.
        let consumer = match &step {
            Transition::Drop { consumer } | Transition::Receive { consumer } => {
                Some(consumer.index(system.consumers.len()))
            }
            _ => None,
        };
        let held = match &step {
            Transition::Settle { held, .. } => Some(held.index(system.held.len())),
            _ => None,
        };
        let runtime = system.runtime.clone();
        let shown = runtime.block_on(async {
            let shown = system.apply((consumer, held), &step).await;
            // The broker's clock task does what is due now.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            shown
        });
        assert_eq!(shown, after.shown, "{step:?}");
        system
    }

    fn check_invariants(system: &System, model: &Model) {
        let used = system.connections[2].broker().memory_used();
        assert_eq!(used > 0, model.messages() > 0, "{used} bytes for what the queues hold");
        for (index, spec) in QUEUES.iter().enumerate() {
            let info = system.runtime.block_on(system.connections[2].queue_info(spec.name));
            let info = info.expect("asked").expect("it exists");
            let found = (
                info.ready,
                info.unsettled.expect("known"),
                info.delayed.expect("known"),
                info.consumers,
            );
            assert_eq!(
                found,
                model.counts(index),
                "ready, unsettled, delayed and consumers of '{}'",
                spec.name
            );
        }
    }
}
