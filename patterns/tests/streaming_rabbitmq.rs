//! Streams of large payloads over RabbitMQ, on each broker that the environment names: what
//! `streaming.rs` runs in memory.
//!
//! `cargo test -p postrider-patterns --features live-broker --test streaming_rabbitmq -- five_closes`
//! runs what has this in its name.

mod streams;

use std::{process::ExitCode, sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Trial};
use postrider_core::{Result, Transport};
use postrider_testkit::{
    harness::{Harness, TestBroker},
    rabbitmq::{self, Login},
};
use streams::{
    files, gigabyte, hostile, losses, payloads,
    world::{SOON, World},
};
use tokio::time::timeout;

/// The longest pause between two attempts to reconnect.
const PAUSE: Duration = Duration::from_secs(1);

fn url(scheme: &str, login: &Login) -> String {
    let Login { address, user, password, .. } = login;
    format!("{scheme}://{user}:{password}@{address}/{}", login.virtual_host.replace('/', "%2f"))
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

type Function = fn(World) -> LocalBoxFuture<'static, ()>;

const FUNCTIONS: &[(&str, Function)] = &[
    ("a_payload_of_any_length_arrives_with_what_was_said_of_it", |world| {
        Box::pin(payloads::a_payload_of_any_length_arrives_with_what_was_said_of_it(world))
    }),
    ("many_transfers_share_one_sender_and_the_receivers_of_a_service", |world| {
        Box::pin(payloads::many_transfers_share_one_sender_and_the_receivers_of_a_service(world))
    }),
    ("a_reader_that_waits_holds_its_sender_back", |world| {
        Box::pin(payloads::a_reader_that_waits_holds_its_sender_back(world))
    }),
    ("a_source_that_is_slow_is_waited_for", |world| {
        Box::pin(payloads::a_source_that_is_slow_is_waited_for(world))
    }),
    ("memory_for_one_is_used_by_one_after_the_other", |world| {
        Box::pin(payloads::memory_for_one_is_used_by_one_after_the_other(world))
    }),
    ("nobody_there_is_told_and_so_is_nobody_free", |world| {
        Box::pin(payloads::nobody_there_is_told_and_so_is_nobody_free(world))
    }),
    ("a_receiver_that_says_no_is_heard", |world| {
        Box::pin(payloads::a_receiver_that_says_no_is_heard(world))
    }),
    ("an_abort_reaches_the_reader", |world| Box::pin(payloads::an_abort_reaches_the_reader(world))),
    ("five_closes_at_the_sender", |world| Box::pin(losses::five_closes_at_the_sender(world))),
    ("five_closes_at_the_receiver", |world| Box::pin(losses::five_closes_at_the_receiver(world))),
    ("five_closes_here_and_there_and_at_both", |world| {
        Box::pin(losses::five_closes_here_and_there_and_at_both(world))
    }),
    ("a_gigabyte_survives_five_closes", |world| {
        Box::pin(gigabyte::a_gigabyte_survives_five_closes(world))
    }),
    ("the_end_is_told_though_the_connection_is_lost_with_it", |world| {
        Box::pin(losses::the_end_is_told_though_the_connection_is_lost_with_it(world))
    }),
    ("another_receiver_takes_over_from_one_that_is_gone", |world| {
        Box::pin(losses::another_receiver_takes_over_from_one_that_is_gone(world))
    }),
    ("a_source_that_is_read_once_does_not_begin_anew", |world| {
        Box::pin(losses::a_source_that_is_read_once_does_not_begin_anew(world))
    }),
    ("a_receiver_that_stops_gives_its_streams_to_another", |world| {
        Box::pin(losses::a_receiver_that_stops_gives_its_streams_to_another(world))
    }),
    ("a_sender_that_comes_back_goes_on_where_it_was", |world| {
        Box::pin(losses::a_sender_that_comes_back_goes_on_where_it_was(world))
    }),
    ("a_receiver_that_hears_nothing_ends", |world| {
        Box::pin(losses::a_receiver_that_hears_nothing_ends(world))
    }),
    ("a_sender_that_hears_nothing_ends", |world| {
        Box::pin(losses::a_sender_that_hears_nothing_ends(world))
    }),
    ("a_file_arrives_whole_and_alone", |world| {
        Box::pin(files::a_file_arrives_whole_and_alone(world))
    }),
    ("a_receiver_begins_by_sweeping_what_nobody_came_back_to", |world| {
        Box::pin(files::a_receiver_begins_by_sweeping_what_nobody_came_back_to(world))
    }),
    ("a_stream_that_is_sent_again_at_once_is_answered_each_time", |world| {
        Box::pin(payloads::a_stream_that_is_sent_again_at_once_is_answered_each_time(world))
    }),
    ("an_abort_leaves_no_file", |world| Box::pin(files::an_abort_leaves_no_file(world))),
    ("a_receiver_that_was_restarted_goes_on_with_its_file", |world| {
        Box::pin(files::a_receiver_that_was_restarted_goes_on_with_its_file(world))
    }),
    ("a_file_that_was_changed_meanwhile_is_begun_anew", |world| {
        Box::pin(files::a_file_that_was_changed_meanwhile_is_begun_anew(world))
    }),
    ("two_transfers_of_one_stream_do_not_share_a_file", |world| {
        Box::pin(files::two_transfers_of_one_stream_do_not_share_a_file(world))
    }),
    ("a_path_that_cannot_be_written_is_the_receiver_s_fault", |world| {
        Box::pin(files::a_path_that_cannot_be_written_is_the_receiver_s_fault(world))
    }),
    ("a_name_is_as_long_as_its_part_may_be", |world| {
        Box::pin(files::a_name_is_as_long_as_its_part_may_be(world))
    }),
    ("a_pipe_is_not_replaced_by_a_file", |world| {
        Box::pin(files::a_pipe_is_not_replaced_by_a_file(world))
    }),
    ("frames_out_of_order_and_twice_do_no_harm", |world| {
        Box::pin(hostile::frames_out_of_order_and_twice_do_no_harm(world))
    }),
    ("what_is_missing_is_asked_for", |world| {
        Box::pin(hostile::what_is_missing_is_asked_for(world))
    }),
    ("what_stays_missing_ends_it", |world| Box::pin(hostile::what_stays_missing_ends_it(world))),
    ("a_damaged_chunk_ends_it", |world| Box::pin(hostile::a_damaged_chunk_ends_it(world))),
    ("a_truncated_chunk_ends_it", |world| Box::pin(hostile::a_truncated_chunk_ends_it(world))),
    ("two_contents_of_a_chunk_end_it", |world| {
        Box::pin(hostile::two_contents_of_a_chunk_end_it(world))
    }),
    ("another_hash_ends_it", |world| Box::pin(hostile::another_hash_ends_it(world))),
    ("a_wrong_offset_ends_it", |world| Box::pin(hostile::a_wrong_offset_ends_it(world))),
    ("a_chunk_that_is_too_long_ends_it", |world| {
        Box::pin(hostile::a_chunk_that_is_too_long_ends_it(world))
    }),
    ("a_chunk_without_its_headers_ends_it", |world| {
        Box::pin(hostile::a_chunk_without_its_headers_ends_it(world))
    }),
    ("a_chunk_beyond_its_credit_ends_it", |world| {
        Box::pin(hostile::a_chunk_beyond_its_credit_ends_it(world))
    }),
    ("more_than_was_announced_ends_it", |world| {
        Box::pin(hostile::more_than_was_announced_ends_it(world))
    }),
    ("an_end_before_what_was_announced_ends_it", |world| {
        Box::pin(hostile::an_end_before_what_was_announced_ends_it(world))
    }),
    ("a_stream_without_an_end_is_ended", |world| {
        Box::pin(hostile::a_stream_without_an_end_is_ended(world))
    }),
    ("an_offer_that_makes_no_sense_is_refused", |world| {
        Box::pin(hostile::an_offer_that_makes_no_sense_is_refused(world))
    }),
    ("a_receiver_that_has_what_was_not_sent_ends_it", |world| {
        Box::pin(hostile::a_receiver_that_has_what_was_not_sent_ends_it(world))
    }),
    ("a_receiver_that_speaks_of_another_payload_is_not_believed", |world| {
        Box::pin(hostile::a_receiver_that_speaks_of_another_payload_is_not_believed(world))
    }),
    ("a_second_receiver_is_sent_away_while_the_first_is_there", |world| {
        Box::pin(hostile::a_second_receiver_is_sent_away_while_the_first_is_there(world))
    }),
    ("a_receiver_that_has_more_than_there_is_ends_it", |world| {
        Box::pin(hostile::a_receiver_that_has_more_than_there_is_ends_it(world))
    }),
    ("a_receiver_that_cannot_make_its_queue_does_not_ask_without_a_pause", |world| {
        Box::pin(hostile::a_receiver_that_cannot_make_its_queue_does_not_ask_without_a_pause(world))
    }),
    ("senders_that_go_without_a_word_do_not_pile_up", |world| {
        Box::pin(hostile::senders_that_go_without_a_word_do_not_pile_up(world))
    }),
    ("a_sender_that_comes_back_while_there_is_no_room_is_heard", |world| {
        Box::pin(losses::a_sender_that_comes_back_while_there_is_no_room_is_heard(world))
    }),
];

fn run(harness: &Arc<dyn Harness>, function: Function) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let broker = harness.broker(&[]).await.expect("a broker");
        let world = World::new(Arc::clone(&broker));
        let offers = format!("stream_{}", world.service);
        function(world).await;
        nothing_is_left(&*broker, &offers).await;
    });
}

/// Waits until there are no connections and no queues but that of the offers, which waits for
/// receivers to come.
async fn nothing_is_left(broker: &dyn TestBroker, offers: &str) {
    let mut left = Vec::new();
    let cleaned = timeout(SOON, async {
        loop {
            left = broker.left_over(offers).await.expect("what is left");
            if left.iter().all(|left| *left == format!("queue '{offers}'")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let cleaned = cleaned.await;
    assert!(cleaned.is_ok(), "connections and the queues of transfers go: {left:?}");
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    let mut trials = Vec::new();
    let over_amqp091 = rabbitmq::harnesses(|login| Box::pin(amqp091(login)), None);
    let over_amqp10 = rabbitmq::harnesses(|login| Box::pin(amqp10(login)), None);
    let over_amqp091 = over_amqp091.into_iter().map(|harness| ("amqp091", harness));
    let over_amqp10 = over_amqp10.into_iter().map(|harness| ("amqp10", harness));
    for (protocol, harness) in over_amqp091.chain(over_amqp10) {
        for (name, function) in FUNCTIONS {
            let (harness, function) = (Arc::clone(&harness), *function);
            let name = format!("{protocol}::{}::{name}", harness.name());
            trials.push(Trial::test(name, move || {
                run(&harness, function);
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
