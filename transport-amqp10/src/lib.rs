//! RabbitMQ 4 over AMQP 1.0, on fe2o3-amqp.

mod address;
mod admin;
mod clock;
mod connection;
mod consumer;
mod dial;
mod encryption;
mod error;
mod frames;
mod ladder;
mod ledger;
mod link;
mod management;
mod message;
mod options;
mod owner;
mod pipeline;
mod publisher;
mod stay;
mod supervisor;
mod transport;
mod uri;
mod wire;

pub use options::Options;
pub use postrider_rabbitmq::Tls;
pub use transport::Amqp10;
