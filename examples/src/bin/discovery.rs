//! Discovery and configuration: instances that are found, picked and missed, and a setting that is
//! changed in all of them at once.
//!
//! `cargo run -p postrider-examples --bin discovery`

use std::{error::Error, sync::Arc, time::Duration};

use clap::Parser;
use postrider::{
    Announcement, Announcer, Config, ConfigPublisher, Pick, Registry, Transport,
    config::{ConfigReport, Versioned},
    discovery::{Change, InstanceHealth, Version, VersionReq},
};
use postrider_examples::BrokerArgs;
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Serialize, Deserialize)]
struct Pricing {
    discount_percent: u8,
}

/// One instance of the service, as its program would hold it.
struct Till {
    announcer: Announcer,
    pricing: Config<Pricing>,
}

impl Till {
    async fn start(
        transport: &Arc<dyn Transport>,
        place: &str,
        version: Version,
    ) -> postrider::Result<Self> {
        let pricing = Config::builder("till", "pricing")
            .default_value(Pricing { discount_percent: 0 })
            .check(|pricing: &Pricing| match pricing.discount_percent {
                0..=50 => Ok(()),
                percent => Err(format!("nobody gives {percent} percent")),
            })
            .instance(place)
            .start(transport)
            .await?;
        let announcer = Announcement::new("till", version)
            .methods(["sell"])
            .metadata("place", place)
            .start(transport)
            .await?;
        Ok(Self { announcer, pricing })
    }

    /// Waits until it has a version of the pricing, and says what that is.
    async fn discount(&self, version: u64) -> Result<u8, Box<dyn Error>> {
        let mut pricing = self.pricing.watch();
        let is_it = |it: &Arc<Versioned<Pricing>>| it.version >= version;
        let it = pricing.wait_for(|it| it.as_ref().is_some_and(is_it)).await?.clone();
        Ok(it.ok_or("there is one")?.value.discount_percent)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { broker } = Args::parse();
    let transport = broker.connect().await?;

    let north = Till::start(&transport, "north", Version::new(1, 4, 0)).await?;
    let south = Till::start(&transport, "south", Version::new(2, 0, 0)).await?;

    // Somebody who looks for them knows both as soon as they have answered.
    let registry = Registry::builder(&transport).services(["till"]).start().await?;
    registry.current().await?;
    println!("{} tills are there", registry.instances("till").len());
    let newer = Pick::round_robin().version(VersionReq::parse("^2")?);
    let picked = registry.pick("till", &newer).ok_or("there is none")?;
    println!("version {} is in the {}", picked.version, picked.metadata["place"]);

    // A setting for all of them. Whoever starts later is given it too.
    let publisher = ConfigPublisher::new(&transport, "till", "pricing").await?;
    let mut reports = publisher.reports();
    let version = publisher.publish(&Pricing { discount_percent: 10 }).await?;
    for till in [&north, &south] {
        println!("{} gives {} percent", till.pricing.instance(), till.discount(version).await?);
    }

    // What makes no sense is not put in force, and who published it is told why.
    let senseless = publisher.publish_if(&Pricing { discount_percent: 90 }, version).await?;
    let has_refused = |report: &ConfigReport| {
        report.rejected.as_ref().is_some_and(|rejected| rejected.version == senseless)
    };
    let refused = reports.wait_for(|reports| {
        ["north", "south"].iter().all(|place| reports.get(*place).is_some_and(has_refused))
    });
    for report in refused.await?.values() {
        let reason = report.rejected.as_ref().map_or("", |rejected| &rejected.reason);
        println!("{} says: {reason}", report.instance);
    }
    println!("north still gives {} percent", north.discount(version).await?);

    // Who is unwell is not picked, and who leaves is gone at once.
    let mut changes = registry.changes();
    for _there_already in registry.instances("till") {
        changes.next().await.ok_or("the registry ended")?;
    }
    north.announcer.set_health(InstanceHealth::Unhealthy("no paper".into()))?;
    let place = |change: &Change| change.instance().metadata["place"].clone();
    while let Some(change) = changes.next().await {
        if let Change::Changed(till) = &change {
            println!("{} changed: {}", place(&change), till.health.reason().unwrap_or("well"));
            break;
        }
    }
    let picked = registry.pick("till", &Pick::least_pending()).ok_or("there is none")?;
    println!("picked {}", picked.metadata["place"]);
    south.announcer.leave().await?;
    while let Some(change) = changes.next().await {
        if let Change::Left(_) = change {
            println!("{} left", place(&change));
            break;
        }
    }
    let nobody = registry.pick("till", &Pick::least_pending()).is_none();
    println!("{}", if nobody { "nobody can be picked" } else { "somebody is there" });

    north.announcer.leave().await?;
    transport.close(Duration::from_secs(5)).await?;
    Ok(())
}
