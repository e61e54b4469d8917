//! Each small program runs, says what it shows, and ends by itself.

use std::process::Command;

#[track_caller]
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn rpc() {
    let said = output(env!("CARGO_BIN_EXE_rpc"), &[]);
    assert_eq!(
        said,
        "$10.00 are 1500 yen\n\
         the bank says NO_SUCH_MONEY: we have no shells\n\
         service 'casino' is unavailable: nobody serves it (there is no queue 'rpc_casino')\n"
    );
}

#[test]
fn async_calls() {
    let said = output(env!("CARGO_BIN_EXE_async_calls"), &[]);
    let begin = "pasta: hot pasta\nsoup: hot soup\nsoufflé ready: false\n";
    assert!(said.starts_with(begin), "{said}");
    // The kitchen and its guest say this at the same time.
    assert!(said.contains("soufflé: the call was cancelled\n"), "{said}");
    assert!(said.contains("kitchen: the soufflé is called off\n"), "{said}");
    assert!(said.contains("menu: course 1\n"), "{said}");
    assert!(said.contains("menu: course 3\n"), "{said}");
    assert!(said.ends_with("coffee: hot coffee\n"), "{said}");
}

#[test]
fn batch_calls() {
    let said = output(env!("CARGO_BIN_EXE_batch_calls"), &[]);
    assert_eq!(
        said,
        "100 calls, 97 answers, their sum is 631.765\n\
         no root: negative by 3\n\
         no root: negative by 2\n\
         no root: negative by 1\n\
         a quorum says [7.0, 7.0]\n\
         3 servers answered, 0 are missing\n"
    );
}

#[test]
fn events() {
    let said = output(env!("CARGO_BIN_EXE_events"), &[]);
    assert!(said.starts_with("published event "), "{said}");
    assert!(said.contains("mailer: welcome, Ada!\n"), "{said}");
    assert!(said.contains("audit: user.registered was heard\n"), "{said}");
}

#[test]
fn work_queue() {
    let said = output(env!("CARGO_BIN_EXE_work_queue"), &[]);
    assert!(said.contains("resized sun.png at try 1\n"), "{said}");
    assert!(said.contains("resized moon.png at try 2\n"), "{said}");
    assert!(
        said.ends_with(
            "resized late.png at try 1\n\
             progress: drawing\n\
             a film of 20 frames\n\
             the long film: the task was called off\n\
             dead letter: notes.txt is no image\n"
        ),
        "{said}"
    );
}

#[test]
fn dead_letters() {
    let said = output(env!("CARGO_BIN_EXE_dead_letters"), &[]);
    assert_eq!(
        said,
        "converted 100 cents to yen\n\
         dead letter: the table of rates has no euros after 3 attempts\n\
         dead letter: the table of rates has no euros after 3 attempts\n\
         dead letter: there is nothing to convert after 1 attempts\n\
         kept as a fixture: NO_RATE\n\
         moved 2, 1 stays\n\
         converted 200 cents to euros\n\
         converted 300 cents to euros\n\
         thrown away 1, left 0\n"
    );
}

#[test]
fn routing() {
    let said = output(env!("CARGO_BIN_EXE_routing"), &[]);
    assert_eq!(
        said,
        "100 customers, 311 purchases, $10,028.20\n\
         11 purchases of $100 and more\n\
         the router has version 1 of its rules\n\
         the service failed, INVALID: route: the table has no such rule (rule: small)\n\
         100 customers, 379 purchases, $12,666.92\n\
         70 purchases of $50 and more\n"
    );
}

#[test]
fn discovery() {
    let said = output(env!("CARGO_BIN_EXE_discovery"), &[]);
    assert_eq!(
        said,
        "2 tills are there\n\
         version 2.0.0 is in the south\n\
         north gives 10 percent\n\
         south gives 10 percent\n\
         north says: nobody gives 90 percent\n\
         south says: nobody gives 90 percent\n\
         north still gives 10 percent\n\
         north changed: no paper\n\
         picked south\n\
         south left\n\
         nobody can be picked\n"
    );
}

#[test]
fn file_transfer() {
    let said = output(env!("CARGO_BIN_EXE_file_transfer"), &["--size", "3"]);
    let lines: Vec<_> = said.lines().collect();
    let [sent, saved] = lines[..] else { panic!("{said}") };
    let what = sent.strip_prefix("sent ").expect("what was sent");
    assert!(what.starts_with("film.mp4: 3145728 bytes, BLAKE3 "), "{said}");
    assert_eq!(saved.strip_prefix("saved "), Some(what));
}

#[test]
fn file_transfer_says_what_it_cannot_do() {
    let program = env!("CARGO_BIN_EXE_file_transfer");
    let output = Command::new(program).args(["send", "film.mp4"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.starts_with("file_transfer: send and receive are two programs"), "{error}");
}
