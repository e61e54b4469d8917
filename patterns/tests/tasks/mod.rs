//! What tracked tasks do over any broker, one function each; the target says which broker it is.

pub(crate) mod calling_off;
pub(crate) mod handles;
pub(crate) mod keys;
pub(crate) mod losses;
pub(crate) mod sharing;
pub(crate) mod times;
pub(crate) mod world;

use world::World;

use crate::suite::Named;

macro_rules! functions {
    ($($room:ident: $($name:ident),+;)+) => {
        &[$($((stringify!($name), |world| Box::pin($room::$name(world.clone()))),)+)+]
    };
}

/// All of them, by their names.
pub(crate) const FUNCTIONS: &[Named<World>] = functions! {
    handles:
        a_task_tells_its_progress_and_gives_its_result,
        a_plain_task_is_tracked_too,
        a_task_that_is_given_up_says_why,
        a_task_that_is_tried_again_says_so,
        a_task_of_unknown_type_is_heard_of,
        handles_are_bounded,
        a_result_that_nobody_hears_is_dropped_and_counted;
    calling_off:
        a_task_that_is_not_begun_is_passed_over,
        a_running_task_sees_that_it_is_called_off,
        one_that_finishes_all_the_same_is_done,
        one_that_fails_then_is_not_tried_again,
        who_did_not_submit_it_may_call_it_off,
        a_worker_that_comes_later_is_told;
    keys:
        of_those_that_wait_one_is_run,
        the_next_one_is_run,
        one_that_failed_stands_in_nobodys_way,
        a_second_is_not_submitted,
        a_second_from_elsewhere_is_not_run_meanwhile;
    times:
        a_task_waits_for_its_time,
        a_queue_has_its_own_time_to_live,
        a_drain_names_what_it_did_not_finish;
    sharing:
        workers_share_the_tasks_of_a_queue,
        the_higher_priority_goes_first,
        many_of_a_higher_priority_are_done_earlier;
    losses:
        the_submitters_loss_ends_its_handles_and_not_the_tasks,
        a_worker_that_is_lost_costs_a_try;
};
