//! Runs the functions of a suite in memory on virtual time, and, with the feature `live-broker`,
//! over both protocols on each RabbitMQ that the environment names.

use std::{process::ExitCode, sync::Arc};

use futures_util::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Trial};
use postrider_core::Env;
use postrider_testkit::harness::TestBroker;
use postrider_transport_inmemory::Broker;
use tokio::runtime::Builder;

use crate::memory::Memory;

/// What a function of the suite is given.
pub(crate) trait World: 'static {
    fn new(broker: Arc<dyn TestBroker>) -> Self;

    /// What the names of its queues begin with.
    #[cfg_attr(not(feature = "live-broker"), expect(dead_code, reason = "memory goes by itself"))]
    fn prefix(&self) -> &str;

    /// Takes away what a function may have made.
    #[cfg_attr(not(feature = "live-broker"), allow(dead_code, reason = "memory goes by itself"))]
    fn clear(&self) -> LocalBoxFuture<'_, ()>;
}

/// The name of a function, and the function.
pub(crate) type Named<W> = (&'static str, fn(&W) -> LocalBoxFuture<'_, ()>);

fn in_memory<W: World>(function: fn(&W) -> LocalBoxFuture<'_, ()>) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        function(&W::new(Arc::new(Memory(Broker::new(Env::simulated(7)))))).await;
    });
}

#[cfg(feature = "live-broker")]
mod on_rabbitmq {
    use std::{sync::Arc, time::Duration};

    use futures_util::future::LocalBoxFuture;
    use libtest_mimic::Trial;
    use postrider_core::{Result, Transport};
    use postrider_testkit::{
        harness::{Harness, TestBroker},
        rabbitmq::{self, Login},
    };
    use tokio::{
        runtime::Builder,
        time::{sleep, timeout},
    };

    use super::{Named, World};

    /// How long anything may take.
    const SOON: Duration = Duration::from_secs(60);

    /// The longest pause between two attempts to reconnect.
    const PAUSE: Duration = Duration::from_secs(1);

    fn url(scheme: &str, login: &Login) -> String {
        let Login { address, user, password, .. } = login;
        let virtual_host = login.virtual_host.replace('/', "%2f");
        format!("{scheme}://{user}:{password}@{address}/{virtual_host}")
    }

    async fn amqp091(login: Login) -> Result<Arc<dyn Transport>> {
        use postrider_transport_amqp091::{Amqp091, Options};
        let url = url("amqp", &login);
        let options = Options::default().with_name(login.user).with_reconnect_pause(PAUSE);
        Ok(Arc::new(Amqp091::connect_with(&url, options).await?))
    }

    async fn amqp10(login: Login) -> Result<Arc<dyn Transport>> {
        use postrider_transport_amqp10::{Amqp10, Options};
        let url = url("amqp10", &login);
        let options = Options::default().with_name(login.user).with_reconnect_pause(PAUSE);
        Ok(Arc::new(Amqp10::connect_with(&url, options).await?))
    }

    fn run<W: World>(harness: &Arc<dyn Harness>, function: fn(&W) -> LocalBoxFuture<'_, ()>) {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let broker = harness.broker(&[]).await.expect("a broker");
            let world = W::new(Arc::clone(&broker));
            function(&world).await;
            world.clear().await;
            nothing_is_left(&*broker, world.prefix()).await;
        });
    }

    async fn nothing_is_left(broker: &dyn TestBroker, prefix: &str) {
        let mut left = Vec::new();
        let cleaned = timeout(SOON, async {
            loop {
                left = broker.left_over(prefix).await.expect("what is left");
                if left.is_empty() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let cleaned = cleaned.await;
        assert!(cleaned.is_ok(), "connections and queues go: {left:?}");
    }

    pub(super) fn trials<W: World>(functions: &'static [Named<W>]) -> Vec<Trial> {
        let over_amqp091 = rabbitmq::harnesses(|login| Box::pin(amqp091(login)), None);
        let over_amqp10 = rabbitmq::harnesses(|login| Box::pin(amqp10(login)), None);
        let over_amqp091 = over_amqp091.into_iter().map(|harness| ("amqp091", harness));
        let over_amqp10 = over_amqp10.into_iter().map(|harness| ("amqp10", harness));
        let mut trials = Vec::new();
        for (protocol, harness) in over_amqp091.chain(over_amqp10) {
            for (name, function) in functions {
                let (harness, function) = (Arc::clone(&harness), *function);
                let name = format!("{protocol}::{}::{name}", harness.name());
                trials.push(Trial::test(name, move || {
                    run(&harness, function);
                    Ok(())
                }));
            }
        }
        trials
    }
}

/// Runs those of `everywhere` on every broker, those of `only_in_memory` there.
#[allow(dead_code, reason = "some targets have functions that need a network")]
pub(crate) fn main<W: World>(
    everywhere: &'static [Named<W>],
    only_in_memory: &'static [Named<W>],
) -> ExitCode {
    main_with(everywhere, only_in_memory, &[])
}

/// As [`main`]; those of `over_a_network` run on RabbitMQ alone.
#[cfg_attr(not(feature = "live-broker"), allow(unused_variables, reason = "there is no network"))]
pub(crate) fn main_with<W: World>(
    everywhere: &'static [Named<W>],
    only_in_memory: &'static [Named<W>],
    over_a_network: &'static [Named<W>],
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    let in_memory = everywhere.iter().chain(only_in_memory).map(|(name, function)| {
        Trial::test(format!("memory::{name}"), move || {
            in_memory(*function);
            Ok(())
        })
    });
    #[cfg_attr(not(feature = "live-broker"), expect(unused_mut, reason = "brokers add theirs"))]
    let mut trials: Vec<_> = in_memory.collect();
    #[cfg(feature = "live-broker")]
    trials.extend(on_rabbitmq::trials(everywhere));
    #[cfg(feature = "live-broker")]
    trials.extend(on_rabbitmq::trials(over_a_network));
    libtest_mimic::run(&arguments, trials).exit_code()
}
