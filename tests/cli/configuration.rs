//! `check`, and what `serve` refuses before it starts.

use super::{code, pgvalet, stderr, stdout};

#[test]
fn check_prints_the_effective_configuration_without_secrets() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgvalet.toml");
    std::fs::write(
        &file,
        "park_after = \"1s\"\nthreads = 2\n[users.b]\npassword = \"hush\"\n",
    )
    .expect("written");
    let arguments = [
        "check",
        "--config",
        file.to_str().expect("UTF-8"),
        "--upstream",
        "postgres://u:hush@h/d",
        "--threads",
        "3",
    ];

    let output = pgvalet(&arguments, &[("PGVALET_PARK_AFTER", "2s")]);

    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    for line in [
        "upstream = \"postgres://u:***@h:5432/d\"  # flag --upstream",
        "park_after = \"2s\"  # variable PGVALET_PARK_AFTER",
        "threads = 3  # flag --threads",
        "[users.b]\npassword = \"***\"",
    ] {
        assert!(text.contains(line), "{line} isn't in {text}");
    }
    assert!(!text.contains("hush") && !stderr(&output).contains("hush"));
}

#[test]
fn check_and_serve_tell_all_that_is_wrong_and_exit_with_2() {
    for command in ["check", "serve"] {
        let output = pgvalet(
            &[
                command,
                "--threads",
                "0",
                "--upstream",
                "postgres://u:hush@h:x/d",
            ],
            &[("PGVALET_MOD", "x")],
        );
        assert_eq!((code(&output), stdout(&output).as_str()), (2, ""));
        let said = stderr(&output);
        assert!(
            said.contains("pgvalet: flag --threads: threads: `0`")
                || said.contains("threads: 0 is out of range"),
            "{said}"
        );
        assert!(said.contains("did you mean `PGVALET_MODE`?"), "{said}");
        assert!(
            said.contains("upstream: the port isn't a number") && !said.contains("hush"),
            "{said}"
        );
    }
}

#[test]
fn help_hides_the_hidden_key_and_documents_exit_codes() {
    let help = stdout(&pgvalet(&["serve", "--help"], &[]));
    assert!(
        help.contains("--park-after <DURATION>") && help.contains("[PGVALET_PARK_AFTER]"),
        "{help}"
    );
    assert!(!help.contains("chaos"), "{help}");
    assert!(stdout(&pgvalet(&["--help"], &[])).contains("3 no pgvalet answers"));
    assert!(stdout(&pgvalet(&["--version"], &[])).starts_with("pgvalet 0."));
}
