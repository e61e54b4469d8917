//! What is logged, in memory alone: there everything is done on the thread that listens.

use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_core::{Queue, Topology};
use postrider_patterns::routing::{Otherwise, Router};
use tokio::time::{sleep, timeout};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::set_default,
};

use super::world::{SOON, World, stop};

/// The errors that were logged.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, _field: &Field, value: &dyn fmt::Debug) {
        let _infallible = write!(self.0, "{value:?} ");
    }
}

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

impl Errors {
    fn of_control(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|text| text.contains("the control of a router")).cloned().collect()
    }
}

pub(crate) async fn a_control_that_ends_unasked_is_logged(world: &World) {
    let errors = Errors::default();
    let _listening = set_default(errors.clone());
    let transport = world.transport().await;
    let service = world.name("control");
    let router = || {
        let router = Router::new(world.intake("orders")).controlled(service.clone());
        router.otherwise(Otherwise::Drop)
    };
    stop(router().start(&transport).await.unwrap()).await;
    drop(router().start(&transport).await.unwrap());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(errors.of_control(), Vec::<String>::new());

    let running = router().start(&transport).await.unwrap();
    let queue = world.naming.rpc_queue(&service);
    let topology = Topology::new().queue(Queue::durable(queue.clone()));
    transport.remove(&topology).await.unwrap();
    let logged = timeout(SOON, async {
        while errors.of_control().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    logged.await.expect("somebody says so");
    assert!(errors.of_control()[0].contains(&queue), "{:?}", errors.of_control());
    stop(running).await;
}
