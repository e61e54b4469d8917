//! Generated programs on the in-memory broker and on RabbitMQ over AMQP 1.0; where they may differ is
//! in `docs/differences.md`.
//!
//! `POSTRIDER_DIFFERENTIAL_PROGRAMS` is how many are run on each, and `POSTRIDER_DIFFERENTIAL_SEED`
//! runs the program of that seed again.

mod login;

use postrider_testkit::{
    differential::Protocol,
    rabbitmq::{Release, compare},
};

#[test]
fn memory_and_rabbitmq_4_3_do_the_same() {
    compare(Release::NEWEST, Protocol::Amqp10, login::connect);
}

#[test]
fn memory_and_rabbitmq_4_0_do_the_same() {
    compare(Release::OLDEST, Protocol::Amqp10, login::connect);
}
