//! How the testkit connects to RabbitMQ over AMQP 1.0.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use postrider_core::{Result, Transport};
use postrider_testkit::rabbitmq::Login;
use postrider_transport_amqp10::{Amqp10, Options};

pub(crate) fn connect(login: Login) -> BoxFuture<'static, Result<Arc<dyn Transport>>> {
    Box::pin(async move {
        let Login { address, user, password, .. } = login;
        let virtual_host = login.virtual_host.replace('/', "%2f");
        let heartbeat = login
            .heartbeat
            .map_or_else(String::new, |heartbeat| format!("?heartbeat={}", heartbeat.as_secs()));
        let url = format!("amqp10://{user}:{password}@{address}/{virtual_host}{heartbeat}");
        let options =
            Options::default().with_name(user).with_reconnect_pause(Duration::from_secs(1));
        Ok(Arc::new(Amqp10::connect_with(&url, options).await?) as Arc<dyn Transport>)
    })
}
