//! When a circuit opens and closes: no clock, no waiting.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// In how many slices a window moves on.
const SLICES: u32 = 10;

/// How a circuit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// Messages pass.
    Closed,
    /// Too many have failed: none passes until the circuit has been open for its time.
    Open,
    /// One message at a time is tried.
    HalfOpen,
}

/// What opens a circuit.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trip {
    Consecutive(u32),
    Ratio { failed: f64, window: Duration, least: u32 },
}

/// Leave for one message. What it tells is heard only while the circuit stands as it stood then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permit(u64);

/// What a message is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Go(Permit),
    /// Ask again at that moment.
    WaitUntil(Instant),
    /// Ask again when the probe has ended.
    WaitForProbe,
}

/// What a message tells of what it depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Works,
    Fails,
    Nothing,
}

#[derive(Debug)]
pub(super) struct Circuit {
    trip: Trip,
    open_for: Duration,
    stands: Stands,
    /// Counts the changes.
    epoch: u64,
}

#[derive(Debug)]
enum Stands {
    Closed(Counts),
    Open { until: Instant },
    HalfOpen { is_probing: bool },
}

impl Circuit {
    pub(super) fn new(trip: Trip, open_for: Duration) -> Self {
        Self { trip, open_for, stands: Stands::Closed(Counts::default()), epoch: 0 }
    }

    pub(super) fn set_open_for(&mut self, time: Duration) {
        self.open_for = time;
    }

    pub(super) fn state(&self) -> CircuitState {
        match self.stands {
            Stands::Closed(_) => CircuitState::Closed,
            Stands::Open { .. } => CircuitState::Open,
            Stands::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    pub(super) fn ask(&mut self, now: Instant) -> Turn {
        match &mut self.stands {
            Stands::Closed(_) => {}
            Stands::Open { until } if now < *until => return Turn::WaitUntil(*until),
            Stands::Open { .. } => self.turn_to(Stands::HalfOpen { is_probing: true }),
            Stands::HalfOpen { is_probing: true } => return Turn::WaitForProbe,
            Stands::HalfOpen { is_probing } => *is_probing = true,
        }
        Turn::Go(Permit(self.epoch))
    }

    pub(super) fn tell(&mut self, permit: Permit, told: Told, now: Instant) {
        if permit.0 != self.epoch {
            return;
        }
        let opens = match (&mut self.stands, told) {
            (Stands::Closed(_), Told::Nothing) | (Stands::Open { .. }, _) => return,
            (Stands::Closed(counts), _) => {
                counts.add(told == Told::Fails, self.trip, now);
                counts.trips(self.trip)
            }
            // The next message probes.
            (Stands::HalfOpen { is_probing }, Told::Nothing) => {
                *is_probing = false;
                return;
            }
            (Stands::HalfOpen { .. }, Told::Fails) => true,
            (Stands::HalfOpen { .. }, Told::Works) => {
                return self.turn_to(Stands::Closed(Counts::default()));
            }
        };
        if opens {
            self.turn_to(Stands::Open { until: now + self.open_for });
        }
    }

    fn turn_to(&mut self, stands: Stands) {
        self.stands = stands;
        self.epoch += 1;
    }
}

/// What messages have told since the circuit closed.
#[derive(Debug, Default)]
struct Counts {
    consecutive: u32,
    /// Of the window, the oldest first.
    slices: VecDeque<Slice>,
}

#[derive(Debug)]
struct Slice {
    began: Instant,
    all: u32,
    failed: u32,
}

impl Counts {
    fn add(&mut self, has_failed: bool, trip: Trip, now: Instant) {
        let Trip::Ratio { window, .. } = trip else {
            self.consecutive = if has_failed { self.consecutive.saturating_add(1) } else { 0 };
            return;
        };
        let age = |slice: &Slice| now.saturating_duration_since(slice.began);
        while self.slices.front().is_some_and(|oldest| age(oldest) >= window) {
            self.slices.pop_front();
        }
        if self.slices.back().is_none_or(|newest| age(newest) >= window / SLICES) {
            self.slices.push_back(Slice { began: now, all: 0, failed: 0 });
        }
        if let Some(slice) = self.slices.back_mut() {
            slice.all = slice.all.saturating_add(1);
            slice.failed = slice.failed.saturating_add(u32::from(has_failed));
        }
    }

    fn trips(&self, trip: Trip) -> bool {
        match trip {
            Trip::Consecutive(failures) => self.consecutive >= failures,
            Trip::Ratio { failed: limit, least, .. } => {
                let sum = |of: fn(&Slice) -> u32| self.slices.iter().map(of).map(f64::from).sum();
                let (all, failed): (f64, f64) = (sum(|slice| slice.all), sum(|slice| slice.failed));
                all >= f64::from(least) && failed > 0.0 && failed >= limit * all
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::Env;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pass(circuit: &mut Circuit, told: Told, now: Instant) {
        let Turn::Go(permit) = circuit.ask(now) else { panic!("it does not pass: {circuit:?}") };
        circuit.tell(permit, told, now);
    }

    fn now() -> Instant {
        Env::system().now()
    }

    #[test]
    fn it_opens_by_failures_in_a_row() {
        let (mut circuit, now) = (Circuit::new(Trip::Consecutive(2), SECOND), now());
        for told in [Told::Fails, Told::Works, Told::Fails, Told::Nothing] {
            pass(&mut circuit, told, now);
            assert_eq!(circuit.state(), CircuitState::Closed);
        }
        pass(&mut circuit, Told::Fails, now);
        assert_eq!(circuit.state(), CircuitState::Open);
        assert_eq!(circuit.ask(now), Turn::WaitUntil(now + SECOND));
    }

    #[test]
    fn it_opens_by_a_ratio_over_a_window_that_moves_on() {
        let trip = Trip::Ratio { failed: 0.5, window: 10 * SECOND, least: 4 };
        let (mut circuit, now) = (Circuit::new(trip, SECOND), now());
        // Three of three are too few to tell.
        (0..3).for_each(|_| pass(&mut circuit, Told::Fails, now));
        assert_eq!(circuit.state(), CircuitState::Closed);
        // They are out of the window: one of four.
        let later = now + 10 * SECOND;
        (0..3).for_each(|_| pass(&mut circuit, Told::Works, later));
        pass(&mut circuit, Told::Fails, later);
        assert_eq!(circuit.state(), CircuitState::Closed);
        let later = later + 5 * SECOND;
        pass(&mut circuit, Told::Fails, later);
        assert_eq!(circuit.state(), CircuitState::Closed);
        pass(&mut circuit, Told::Fails, later);
        assert_eq!(circuit.state(), CircuitState::Open);
    }

    #[test]
    fn one_probe_decides_and_one_that_tells_nothing_is_followed_by_another() {
        let (mut circuit, now) = (Circuit::new(Trip::Consecutive(1), SECOND), now());
        let Turn::Go(slow) = circuit.ask(now) else { panic!("closed") };
        pass(&mut circuit, Told::Fails, now);
        let later = now + SECOND;
        let Turn::Go(probe) = circuit.ask(later) else { panic!("half open") };
        assert_eq!(
            (circuit.state(), circuit.ask(later)),
            (CircuitState::HalfOpen, Turn::WaitForProbe)
        );
        // What began before it opened is not heard.
        circuit.tell(slow, Told::Works, later);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        circuit.tell(probe, Told::Nothing, later);
        pass(&mut circuit, Told::Fails, later);
        assert_eq!(circuit.ask(later), Turn::WaitUntil(later + SECOND));
        pass(&mut circuit, Told::Works, later + SECOND);
        assert_eq!(circuit.state(), CircuitState::Closed);
    }

    #[test]
    fn a_window_takes_a_bounded_place() {
        let trip = Trip::Ratio { failed: 0.9, window: 10 * SECOND, least: 1_000_000 };
        let (mut circuit, mut moment) = (Circuit::new(trip, SECOND), now());
        for _ in 0..10_000 {
            pass(&mut circuit, Told::Works, moment);
            moment += Duration::from_millis(10);
        }
        let Stands::Closed(counts) = &circuit.stands else { panic!("closed") };
        assert!(counts.slices.len() <= SLICES as usize, "{}", counts.slices.len());
    }
}
