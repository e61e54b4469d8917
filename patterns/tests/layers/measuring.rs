//! Figures, by a recorder of the test's own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use postrider_patterns::{Context, HandlerError, Measure, Naming, RetryPolicy, WorkQueue, Worker};
use tokio::time::sleep;

use crate::{
    Email,
    common::{SECOND, publish, transport},
};

/// What was recorded, by name and labels: the sum, and for histograms the values.
#[derive(Debug, Default, Clone)]
struct Figures(Arc<Mutex<BTreeMap<String, Vec<f64>>>>);

/// One of them.
struct Figure(Figures, String);

impl Figures {
    fn figure(&self, key: &Key) -> Arc<Figure> {
        let mut labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort_unstable();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Figure(self.clone(), name))
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.0.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    fn sum(&self, name: &str) -> f64 {
        self.values(name).iter().sum()
    }
}

impl Figure {
    fn add(&self, value: f64) {
        self.0.0.lock().unwrap().entry(self.1.clone()).or_default().push(value);
    }
}

impl CounterFn for Figure {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }
    fn absolute(&self, _: u64) {
        only_adds();
    }
}

impl GaugeFn for Figure {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, value: f64) {
        self.add(-value);
    }
    fn set(&self, _: f64) {
        only_adds();
    }
}

impl HistogramFn for Figure {
    fn record(&self, value: f64) {
        self.add(value);
    }
}

fn only_adds() {
    panic!("the middleware only adds");
}

impl Recorder for Figures {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.figure(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.figure(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.figure(key))
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_published_and_handled_is_counted_under_fixed_names() {
    let figures = Figures::default();
    let _here = metrics::set_default_local_recorder(&figures);
    let (transport, measure) = (transport(), Measure::new());
    let queue = WorkQueue::builder(&transport).with(measure.clone()).connect().await.unwrap();
    let running = Worker::new("email")
        .on(|task: Email, context: Context| async move {
            sleep(SECOND).await;
            match (task.to, context.attempt()) {
                (1, 1) => Err(HandlerError::transient("busy")),
                (2, _) => Err(HandlerError::invalid("no such address")),
                _ => Ok(()),
            }
        })
        .retry(RetryPolicy::default())
        .with(measure)
        .start(&transport)
        .await
        .unwrap();
    queue.submit_all(&[Email { to: 1 }, Email { to: 2 }, Email { to: 3 }]).await.unwrap();
    let name = running.queue().to_owned();
    sleep(SECOND / 2).await;
    assert_eq!(figures.sum(&format!("postrider_in_flight{{queue={name}}}")), 3.0);
    // One that cannot be decoded comes to no handler.
    let address = postrider_core::Address::queue(Naming::default().task_queue("email"));
    publish(&*transport, address, postrider_core::Message::new("{")).await;
    sleep(10 * SECOND).await;

    let consumed = |kind: &str, outcome: &str| {
        let labels = format!("{{outcome={outcome},queue={name},type={kind}}}");
        figures.sum(&format!("postrider_consumed_total{labels}"))
    };
    assert_eq!(consumed("email", "acked"), 2.0);
    assert_eq!(consumed("email", "retried"), 1.0);
    assert_eq!(consumed("email", "dead_lettered"), 1.0);
    assert_eq!(consumed("none", "dead_lettered"), 1.0);
    let failures = |class: &str| {
        figures.sum(&format!("postrider_failures_total{{class={class},queue={name},type=email}}"))
    };
    assert_eq!((failures("TRANSIENT"), failures("INVALID")), (1.0, 1.0));
    let handling =
        figures.values(&format!("postrider_handling_seconds{{queue={name},type=email}}"));
    assert_eq!(handling, [1.0; 4]);
    assert_eq!(figures.values(&format!("postrider_lag_seconds{{queue={name}}}")).len(), 3);
    assert_eq!(figures.sum(&format!("postrider_in_flight{{queue={name}}}")), 0.0);
    let published = "outcome=accepted,type=email}";
    let published = format!("postrider_published_total{{destination={name},{published}");
    assert_eq!(figures.sum(&published), 3.0);
    let took = figures.values(&format!("postrider_publish_seconds{{destination={name}}}"));
    assert_eq!(took.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_released_and_no_more_in_flight() {
    let figures = Figures::default();
    let _here = metrics::set_default_local_recorder(&figures);
    let transport = transport();
    let running = Worker::new("email")
        .on(|_task: Email, _context| async {
            sleep(60 * SECOND).await;
            Ok(())
        })
        .with(Measure::new())
        .start(&transport)
        .await
        .unwrap();
    crate::submit(&transport, &[1]).await;
    sleep(SECOND).await;
    let name = running.queue().to_owned();
    running.stop(SECOND).await;
    let labels = format!("{{outcome=released,queue={name},type=email}}");
    assert_eq!(figures.sum(&format!("postrider_consumed_total{labels}")), 1.0);
    assert_eq!(figures.values(&format!("postrider_in_flight{{queue={name}}}")), [1.0, -1.0]);
    let recorded = figures.0.lock().unwrap();
    assert!(recorded.keys().all(|name| !name.starts_with("postrider_failures")), "{recorded:?}");
}
