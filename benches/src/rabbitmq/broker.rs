//! What is to be known of a broker beside figures.

use std::{fmt, process::Command};

/// The script that runs the brokers.
const BROKERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/brokers");

/// Tells the process, the releases, the WAL's size, the schedulers and how many microseconds it
/// takes to write 4 KiB to the disk of the broker's data: the median of 51 times.
const FACTS: &str = r#"
Probe = filename:join(rabbit:data_dir(), "postrider-probe-" ++ os:getpid() ++ "-"
    ++ integer_to_list(erlang:unique_integer([positive]))),
{ok, File} = file:open(Probe, [write, raw, binary]),
Block = binary:copy(<<0>>, 4096),
Write = fun() -> ok = file:write(File, Block), ok = file:datasync(File) end,
Times = lists:sort([element(1, timer:tc(Write)) || _ <- lists:seq(1, 51)]),
ok = file:close(File), ok = file:delete(Probe),
{ok, Wal} = application:get_env(ra, wal_max_size_bytes),
lists:flatten(io_lib:format("~s ~s ~s ~w ~w ~w", [os:getpid(), rabbit_misc:version(),
    erlang:system_info(otp_release), Wal, erlang:system_info(schedulers_online),
    lists:nth(26, Times)])).
"#;

/// A broker that `scripts/brokers` runs.
#[derive(Debug)]
pub struct Broker {
    /// Its process, as it knows it itself.
    pub process: u32,
    release: String,
    erlang: String,
    wal_bytes: u64,
    schedulers: u32,
    fsync_micros: u64,
}

impl Broker {
    /// The broker behind `url`; `None` when `scripts/brokers` does not run it.
    #[must_use]
    pub fn at(url: &str) -> Option<Self> {
        let exports = output(&["env"])?;
        let of_url = |line: &&str| line.strip_suffix(url).is_some_and(|rest| rest.ends_with('='));
        let variable = exports.lines().find(of_url)?.split('=').next()?;
        let version = if variable.ends_with("_40") { "4.0" } else { "4.3" };
        let told = output(&["ctl", "--version", version, "eval", FACTS])?;
        let mut words = told.trim().trim_matches('"').split_whitespace();
        Some(Self {
            process: words.next()?.parse().ok()?,
            release: words.next()?.to_owned(),
            erlang: words.next()?.to_owned(),
            wal_bytes: words.next()?.parse().ok()?,
            schedulers: words.next()?.parse().ok()?,
            fsync_micros: words.next()?.parse().ok()?,
        })
    }
}

fn output(arguments: &[&str]) -> Option<String> {
    let output = Command::new(BROKERS).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { release, erlang, schedulers, fsync_micros, .. } = self;
        let wal = self.wal_bytes >> 20;
        write!(
            f,
            "RabbitMQ {release} on Erlang/OTP {erlang}, {schedulers} schedulers, a WAL of {wal} \
             MiB for quorum queues; 4 KiB written and synced on its disk in {fsync_micros} µs"
        )
    }
}
