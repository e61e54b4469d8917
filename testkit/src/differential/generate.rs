//! Makes up programs.

use std::time::Duration;

use postrider_core::{
    Address, Binding, DeadLetter, Exchange, ExchangeKind, Message, Overflow, Queue, QueueKind,
    Topology,
};

use super::{
    dice::{Dice, Means},
    program::{How, LONG, Program, SHORT, Step},
};

const QUEUES: [&str; 4] = ["q0", "q1", "q2", "q3"];
const EXCHANGES: [&str; 3] = ["x0", "x1", "x2"];
const KEYS: [&str; 4] = ["a", "a.b", "b.c", "a.b.c"];
const PATTERNS: [&str; 5] = ["a", "a.*", "#", "*.b.#", "a.b"];
/// A delivery limit that no program reaches.
const UNREACHED: u32 = 1_000;
const MISSING: &str = "nowhere";
/// Where dead letters go in programs with delivery limits: a classic queue that has none itself.
const GRAVEYARD: &str = "q1";

struct Generator {
    dice: Dice,
    means: Means,
    timed: bool,
    /// Whether quorum queues have delivery limits; where a release counts, then nothing is
    /// released.
    limited: bool,
    /// The one queue with dead letters for what dies of length or time.
    mortal: Option<String>,
    queues: Vec<Queue>,
    exchanges: Vec<Exchange>,
    bindings: Vec<Binding>,
    steps: Vec<Step>,
    published: usize,
}

/// The program of `seed`.
pub(super) fn program(seed: u64, means: Means) -> Program {
    let dice = Dice::new(seed);
    let timed = dice.percent(30);
    let limited = dice.percent(if means.uncounted_release { 50 } else { 30 });
    let mut generator = Generator {
        dice,
        means,
        timed,
        limited,
        mortal: None,
        queues: Vec::new(),
        exchanges: Vec::new(),
        bindings: Vec::new(),
        steps: Vec::new(),
        published: 0,
    };
    generator.found();
    let length = 8 + generator.dice.below(if timed { 10 } else { 24 });
    for _ in 0..length {
        generator.step();
    }
    Program { seed, timed, steps: generator.steps }
}

impl Generator {
    /// The name of a queue that was declared, mostly.
    fn a_queue(&self) -> &'static str {
        let there = if self.dice.percent(95) { self.queues.len() } else { QUEUES.len() };
        QUEUES[self.dice.below(there)]
    }

    fn connection(&self) -> usize {
        usize::from(self.dice.percent(15))
    }

    fn declare(&mut self, topology: Topology) {
        self.steps.push(Step::Declare { connection: 0, topology });
    }

    /// The topology that the program begins with.
    fn found(&mut self) {
        for name in EXCHANGES.into_iter().take(1 + self.dice.below(EXCHANGES.len())) {
            let exchange = self.exchange(name);
            self.exchanges.push(exchange.clone());
            self.declare(Topology::new().exchange(exchange));
        }
        for name in QUEUES.into_iter().take(2 + self.dice.below(QUEUES.len() - 1)) {
            let queue = self.queue(name);
            self.queues.push(queue.clone());
            self.declare(Topology::new().queue(queue));
        }
        for _ in 0..self.dice.below(5) {
            self.bind();
        }
        for _ in 0..self.dice.below(3) {
            self.consume();
        }
    }

    fn exchange(&self, name: &'static str) -> Exchange {
        let kind = self.dice.pick(&[
            ExchangeKind::Direct,
            ExchangeKind::Topic,
            ExchangeKind::Fanout,
            ExchangeKind::Headers,
        ]);
        let mut exchange = Exchange::new(name, kind);
        exchange.durable = !self.dice.percent(20);
        exchange.auto_delete = self.dice.percent(15);
        exchange.internal = self.dice.percent(10);
        if self.dice.percent(25) {
            let alternate = self.dice.pick(&["x0", "x1", "x2", MISSING]);
            exchange.alternate = Some(alternate.into());
        }
        exchange
    }

    fn queue(&mut self, name: &'static str) -> Queue {
        let is_graveyard = self.limited && name == GRAVEYARD;
        let is_quorum = self.dice.percent(50) && !is_graveyard;
        let mut queue = if is_quorum { self.quorum(name) } else { self.classic(name) };
        let may_die = !is_graveyard && (queue.kind == QueueKind::Classic || self.releases());
        if may_die && self.dice.percent(50) {
            queue.dead_letter = Some(self.dead_letter());
        }
        if self.dice.percent(30) {
            queue.max_length = Some(1 + self.dice.below(3) as u64);
        }
        if queue.kind == QueueKind::Classic && self.dice.percent(20) && self.means.sizes {
            queue.max_length_bytes = Some(6 + self.dice.below(8) as u64);
        }
        // On a quorum queue it is known to overshoot; see `quorum-reject-publish`.
        if queue.kind == QueueKind::Classic && self.dice.percent(40) {
            queue.overflow = Overflow::RejectPublish;
        }
        // One queue of a program at most, so that dead letters come from one place at a time.
        let has_ttl = self.queues.iter().any(|known| known.message_ttl == Some(SHORT));
        if self.timed && !has_ttl && self.dice.percent(40) {
            queue.message_ttl = Some(SHORT);
            queue.max_priority = None;
        } else if self.dice.percent(15) {
            queue.message_ttl = Some(LONG);
        }
        let dies = queue.max_length.is_some()
            || queue.max_length_bytes.is_some()
            || queue.message_ttl == Some(SHORT);
        if dies && queue.dead_letter.is_some() {
            match &self.mortal {
                Some(known) if *known != queue.name => queue.dead_letter = None,
                _ => self.mortal = Some(queue.name.to_string()),
            }
        }
        if self.timed && self.dice.percent(10) {
            queue.expires = Some(SHORT);
        } else if self.dice.percent(10) {
            queue.expires = Some(LONG);
        }
        queue
    }

    fn quorum(&self, name: &'static str) -> Queue {
        let mut queue = Queue::durable(name).without_delivery_limit();
        if self.limited {
            queue.delivery_limit = Some(self.dice.below(3) as u32);
        } else if !self.means.uncounted_release {
            queue.delivery_limit = Some(UNREACHED);
        }
        queue.single_active_consumer = self.dice.percent(20);
        queue
    }

    fn classic(&self, name: &'static str) -> Queue {
        let mut queue = Queue::classic(name);
        match self.dice.below(10) {
            0..=1 => queue = Queue::exclusive(name),
            2..=3 => queue.auto_delete = true,
            4 => queue.single_active_consumer = true,
            _ => {}
        }
        if self.dice.percent(30) {
            queue.max_priority = Some(1 + self.dice.below(5) as u8);
        }
        queue
    }

    fn dead_letter(&self) -> DeadLetter {
        if self.limited && self.dice.percent(90) {
            return DeadLetter::to("").with_routing_key(GRAVEYARD);
        }
        if self.limited {
            return DeadLetter::to(MISSING);
        }
        match self.dice.below(10) {
            0..=5 => DeadLetter::to("").with_routing_key(self.dice.pick(&QUEUES)),
            6..=7 => DeadLetter::to(self.dice.pick(&EXCHANGES)),
            8 => {
                let key = self.dice.pick(&KEYS);
                DeadLetter::to(self.dice.pick(&EXCHANGES)).with_routing_key(key)
            }
            _ => DeadLetter::to(MISSING),
        }
    }

    fn binding(&self) -> Binding {
        let (exchange, key) = (self.dice.pick(&EXCHANGES), self.dice.pick(&PATTERNS));
        let mut binding = if self.dice.percent(25) {
            Binding::exchange(exchange, self.dice.pick(&EXCHANGES), key)
        } else {
            Binding::queue(exchange, self.dice.pick(&QUEUES), key)
        };
        let is_headers = self
            .exchanges
            .iter()
            .any(|known| known.name == exchange && known.kind == ExchangeKind::Headers);
        if is_headers && self.dice.percent(90) {
            let rule = self.dice.pick(&["all", "any", "all-with-x", "any-with-x"]);
            binding = binding.with_argument("x-match", rule);
            for name in ["h", "g", "x-h"] {
                if self.dice.percent(50) {
                    binding = binding.with_argument(name, self.dice.below(2) as i64);
                }
            }
        }
        binding
    }

    fn bind(&mut self) {
        let binding = self.binding();
        self.bindings.push(binding.clone());
        self.declare(Topology::new().bind(binding));
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..=25 => self.publish(),
            26..=34 => self.consume(),
            35..=58 => self.receive(),
            59..=83 => self.settle(),
            84..=86 => self.drop_consumer(),
            87 => {
                let (connection, queue) = (self.connection(), self.a_queue().to_owned());
                self.steps.push(Step::Purge { connection, queue });
            }
            88 => {
                let (connection, queue) = (self.connection(), self.a_queue().to_owned());
                self.steps.push(Step::Ask { connection, queue });
            }
            89..=90 => self.bind(),
            91 => self.unbind(),
            92..=94 => self.redeclare(),
            95..=96 => self.remove(),
            _ => {
                let connection = self.connection();
                self.steps.push(Step::Lose { connection });
            }
        }
    }

    fn publish(&mut self) {
        let burst = if self.timed { 1 } else { 1 + self.dice.below(3) };
        for _ in 0..burst {
            self.publish_one();
        }
    }

    fn publish_one(&mut self) {
        // Else a dead letter of one queue and the message itself would race to another.
        let to_queue = self.mortal.is_some() || self.dice.percent(60);
        let address = if to_queue {
            Address::queue(self.a_queue())
        } else if self.dice.percent(5) {
            Address::exchange(MISSING, "a")
        } else {
            let key = self.dice.pick(&KEYS);
            Address::exchange(self.dice.pick(&EXCHANGES), key)
        };
        let mut message = Message::new(format!("m{}", self.published));
        self.published += 1;
        let mut delay = Duration::ZERO;
        // To one queue, so that what expires at the same time comes from one place.
        if self.timed && to_queue && self.dice.percent(30) {
            message.ttl = Some(if self.dice.percent(15) { Duration::ZERO } else { SHORT });
        } else if self.dice.percent(10) {
            message.ttl = Some(LONG);
        } else if self.timed && to_queue && self.means.delays && self.dice.percent(20) {
            delay = SHORT;
        }
        if self.means.priorities && self.dice.percent(40) {
            message.priority = Some(self.dice.pick(&[0, 1, 2, 4, 5, 9, 40]));
        }
        for name in ["h", "g", "x-h"] {
            if self.dice.percent(30) {
                message.headers.set(name, self.dice.below(2) as i64);
            }
        }
        if self.dice.percent(10) {
            message = message.transient();
        }
        self.steps.push(Step::Publish { address, message: Box::new(message), delay });
    }

    fn consume(&mut self) {
        let connection = self.connection();
        let queue = self.a_queue().to_owned();
        let prefetch = self.dice.pick(&[1, 2, 3, 10]);
        let exclusive = self.dice.percent(8) && self.means.exclusive_consumers;
        self.steps.push(Step::Consume { connection, queue, prefetch, exclusive });
    }

    fn receive(&mut self) {
        let (consumer, most) = (self.dice.below(4), 1 + self.dice.below(3));
        self.steps.push(Step::Receive { consumer, most });
    }

    /// Whether deliveries may be given back uncounted.
    const fn releases(&self) -> bool {
        self.means.uncounted_release || !self.limited
    }

    fn settle(&mut self) {
        let mut ways =
            vec![How::Ack, How::Ack, How::Retry, How::Retry, How::Retry, How::Reject, How::Reject];
        if self.releases() {
            ways.extend([How::Release, How::Release, How::Abandon]);
        }
        if self.timed && self.means.delays {
            ways.push(How::RetryLater);
        }
        let (held, how) = (self.dice.below(6), self.dice.pick(&ways));
        self.steps.push(Step::Settle { held, how });
    }

    fn drop_consumer(&mut self) {
        if self.releases() {
            let consumer = self.dice.below(4);
            self.steps.push(Step::DropConsumer { consumer });
        }
    }

    fn unbind(&mut self) {
        if !self.bindings.is_empty() {
            let binding = self.dice.pick(&self.bindings.clone());
            self.steps
                .push(Step::Remove { connection: 0, topology: Topology::new().bind(binding) });
        }
    }

    /// The same again, or something else of the same name.
    fn redeclare(&mut self) {
        if self.dice.percent(25) {
            let known = self.dice.pick(&self.exchanges.clone());
            let exchange = if self.dice.percent(50) {
                known
            } else {
                let name = self.dice.pick(&EXCHANGES);
                self.exchange(name)
            };
            self.declare(Topology::new().exchange(exchange));
            return;
        }
        let known = self.dice.pick(&self.queues.clone());
        let queue = match self.dice.below(4) {
            0 => known,
            1 => {
                let name = self.dice.pick(&QUEUES);
                self.queue(name)
            }
            2 => Queue::classic("amq.mine"),
            _ => known.with_max_length(17),
        };
        self.declare(Topology::new().queue(queue));
    }

    fn remove(&mut self) {
        let topology = if self.dice.percent(70) {
            Topology::new().queue(Queue::classic(self.dice.pick(&QUEUES)))
        } else {
            Topology::new().exchange(Exchange::direct(self.dice.pick(&EXCHANGES)))
        };
        let connection = self.connection();
        self.steps.push(Step::Remove { connection, topology });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_program() {
        let all = Means {
            priorities: true,
            uncounted_release: true,
            delays: true,
            exclusive_consumers: true,
            sizes: true,
        };
        for seed in 0..200 {
            let text = program(seed, all).to_string();
            assert_eq!(text, program(seed, all).to_string());
            assert_ne!(text, program(seed + 1, all).to_string());
        }
    }
}
