//! What the twins on lapin share.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions},
    types::FieldTable,
};

/// A message that outlives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// As Postrider publishes.
pub(super) const MANDATORY: BasicPublishOptions =
    BasicPublishOptions { mandatory: true, immediate: false };

pub(super) async fn connect(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default()).await.expect("connected")
}

pub(super) async fn confirm_channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    channel
}

pub(super) fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

/// A channel with a consumer.
pub(super) async fn consumer(
    connection: &Connection,
    queue: &str,
    prefetch: u16,
) -> (Channel, Consumer) {
    let channel = connection.create_channel().await.expect("a channel");
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("a prefetch");
    let consumer = channel
        .basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("consuming");
    (channel, consumer)
}

/// Closes a connection, whose channels must not have been dropped: lapin closes those by itself, and
/// to do both at once may fail or hang.
pub(super) async fn close(connection: &Connection) {
    connection.close(200, "OK".into()).await.expect("closed");
}
