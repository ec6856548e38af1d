use secrecy::ExposeSecret;

use super::*;

async fn output(command: &str) -> Result<String, String> {
    let variables = [("PGUSER", "app".to_owned())];
    let ran = run(command, &variables, Duration::from_millis(2000)).await;
    ran.map(|password| password.expose_secret().to_owned())
        .map_err(|why| why.to_string())
}

#[tokio::test]
async fn the_output_is_the_password() {
    assert_eq!(output("printf 'to ken\\r\\n'").await.unwrap(), "to ken");
    assert_eq!(
        output("echo \"for-$PGUSER\"; echo noise >&2")
            .await
            .unwrap(),
        "for-app"
    );
}

#[tokio::test]
async fn what_can_t_be_a_password_is_refused_and_never_quoted() {
    for (command, why) in [
        ("true", "empty"),
        ("printf 'a\\nsecret\\n'", "more than one line"),
        ("printf 'secret\\377'", "not UTF-8"),
        ("head -c 70000 /dev/zero | tr '\\0' s", "too long"),
        (
            "echo secret; echo first >&2; echo no rights >&2; exit 3",
            "exit status: 3: no rights",
        ),
        ("no-such-program-here", "not found"),
    ] {
        let refused = output(command).await.unwrap_err();
        assert!(refused.contains(why), "{command}: {refused}");
        assert!(!refused.contains("secret"), "{refused}");
    }
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_all_that_it_started() {
    let home = tempfile::tempdir().unwrap();
    let pid = home.path().join("pid");
    let command = format!("sleep 600 & echo $! > '{}'; wait", pid.display());
    let late = run(&command, &[], Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(late, Failure::Late(_)), "{late}");
    let pid: i32 = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let stat = format!("/proc/{pid}/stat");
    // Whoever inherits it may take a moment to bury it.
    let gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..500 {
        if gone() {
            return;
        }
        timers::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} is still there");
}
