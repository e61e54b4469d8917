//! Streams of large payloads over the in-memory broker, on virtual time.

mod common;
mod streams;

use std::sync::Arc;

use common::memory::Memory;
use postrider_core::Env;
use postrider_transport_inmemory::Broker;
use streams::{files, gigabyte, hostile, losses, payloads, world::World};

fn world() -> World {
    World::new(Arc::new(Memory(Broker::new(Env::simulated(7)))))
}

#[tokio::test(start_paused = true)]
async fn a_payload_of_any_length_arrives_with_what_was_said_of_it() {
    payloads::a_payload_of_any_length_arrives_with_what_was_said_of_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn many_transfers_share_one_sender_and_the_receivers_of_a_service() {
    payloads::many_transfers_share_one_sender_and_the_receivers_of_a_service(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_holds_its_sender_back() {
    payloads::a_reader_that_waits_holds_its_sender_back(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_slow_is_waited_for() {
    payloads::a_source_that_is_slow_is_waited_for(world()).await;
}

#[tokio::test(start_paused = true)]
async fn memory_for_one_is_used_by_one_after_the_other() {
    payloads::memory_for_one_is_used_by_one_after_the_other(world()).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_told_and_so_is_nobody_free() {
    payloads::nobody_there_is_told_and_so_is_nobody_free(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_says_no_is_heard() {
    payloads::a_receiver_that_says_no_is_heard(world()).await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_reaches_the_reader() {
    payloads::an_abort_reaches_the_reader(world()).await;
}

#[tokio::test(start_paused = true)]
async fn five_closes_at_the_sender() {
    losses::five_closes_at_the_sender(world()).await;
}

#[tokio::test(start_paused = true)]
async fn five_closes_at_the_receiver() {
    losses::five_closes_at_the_receiver(world()).await;
}

#[tokio::test(start_paused = true)]
async fn five_closes_here_and_there_and_at_both() {
    losses::five_closes_here_and_there_and_at_both(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_gigabyte_survives_five_closes() {
    gigabyte::a_gigabyte_survives_five_closes(world()).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_is_told_though_the_connection_is_lost_with_it() {
    losses::the_end_is_told_though_the_connection_is_lost_with_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn another_receiver_takes_over_from_one_that_is_gone() {
    losses::another_receiver_takes_over_from_one_that_is_gone(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_read_once_does_not_begin_anew() {
    losses::a_source_that_is_read_once_does_not_begin_anew(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_stops_gives_its_streams_to_another() {
    losses::a_receiver_that_stops_gives_its_streams_to_another(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_comes_back_goes_on_where_it_was() {
    losses::a_sender_that_comes_back_goes_on_where_it_was(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_hears_nothing_ends() {
    losses::a_receiver_that_hears_nothing_ends(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_hears_nothing_ends() {
    losses::a_sender_that_hears_nothing_ends(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_arrives_whole_and_alone() {
    files::a_file_arrives_whole_and_alone(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_begins_by_sweeping_what_nobody_came_back_to() {
    files::a_receiver_begins_by_sweeping_what_nobody_came_back_to(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_sent_again_at_once_is_answered_each_time() {
    payloads::a_stream_that_is_sent_again_at_once_is_answered_each_time(world()).await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_leaves_no_file() {
    files::an_abort_leaves_no_file(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_was_restarted_goes_on_with_its_file() {
    files::a_receiver_that_was_restarted_goes_on_with_its_file(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_changed_meanwhile_is_begun_anew() {
    files::a_file_that_was_changed_meanwhile_is_begun_anew(world()).await;
}

/// In memory alone, since it stops all that a broker does.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_stops_under_an_alarm_keeps_its_file() {
    files::a_receiver_that_stops_under_an_alarm_keeps_its_file(world()).await;
}

#[tokio::test(start_paused = true)]
async fn two_transfers_of_one_stream_do_not_share_a_file() {
    files::two_transfers_of_one_stream_do_not_share_a_file(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_written_is_the_receiver_s_fault() {
    files::a_path_that_cannot_be_written_is_the_receiver_s_fault(world()).await;
}

#[tokio::test(start_paused = true)]
async fn frames_out_of_order_and_twice_do_no_harm() {
    hostile::frames_out_of_order_and_twice_do_no_harm(world()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_asked_for() {
    hostile::what_is_missing_is_asked_for(world()).await;
}

#[tokio::test(start_paused = true)]
async fn what_stays_missing_ends_it() {
    hostile::what_stays_missing_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_chunk_ends_it() {
    hostile::a_damaged_chunk_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_truncated_chunk_ends_it() {
    hostile::a_truncated_chunk_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn two_contents_of_a_chunk_end_it() {
    hostile::two_contents_of_a_chunk_end_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn another_hash_ends_it() {
    hostile::another_hash_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_offset_ends_it() {
    hostile::a_wrong_offset_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_is_too_long_ends_it() {
    hostile::a_chunk_that_is_too_long_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_without_its_headers_ends_it() {
    hostile::a_chunk_without_its_headers_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_chunk_beyond_its_credit_ends_it() {
    hostile::a_chunk_beyond_its_credit_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn more_than_was_announced_ends_it() {
    hostile::more_than_was_announced_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_before_what_was_announced_ends_it() {
    hostile::an_end_before_what_was_announced_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_an_end_is_ended() {
    hostile::a_stream_without_an_end_is_ended(world()).await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_makes_no_sense_is_refused() {
    hostile::an_offer_that_makes_no_sense_is_refused(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_has_what_was_not_sent_ends_it() {
    hostile::a_receiver_that_has_what_was_not_sent_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_speaks_of_another_payload_is_not_believed() {
    hostile::a_receiver_that_speaks_of_another_payload_is_not_believed(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_receiver_is_sent_away_while_the_first_is_there() {
    hostile::a_second_receiver_is_sent_away_while_the_first_is_there(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_has_more_than_there_is_ends_it() {
    hostile::a_receiver_that_has_more_than_there_is_ends_it(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_cannot_make_its_queue_does_not_ask_without_a_pause() {
    hostile::a_receiver_that_cannot_make_its_queue_does_not_ask_without_a_pause(world()).await;
}

#[tokio::test(start_paused = true)]
async fn senders_that_go_without_a_word_do_not_pile_up() {
    hostile::senders_that_go_without_a_word_do_not_pile_up(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_comes_back_while_there_is_no_room_is_heard() {
    losses::a_sender_that_comes_back_while_there_is_no_room_is_heard(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_is_as_long_as_its_part_may_be() {
    files::a_name_is_as_long_as_its_part_may_be(world()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_not_replaced_by_a_file() {
    files::a_pipe_is_not_replaced_by_a_file(world()).await;
}
