//! The configuration: whatever the file says, it is refused by name, or taken, shown and taken again as the same.

use std::path::{Path, PathBuf};

use pgvalet::config::{Sources, load};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let file = scratch();
    std::fs::write(&file, text).expect("the scratch file can be written");
    let loaded = load(&sources(&file));
    match loaded {
        Err(errors) => assert!(!errors.to_string().trim().is_empty()),
        Ok(loaded) => {
            let shown = loaded.config.effective_toml();
            let secret =
                text.matches("hunter2").count() == 1 && text.contains("password = \"hunter2\"");
            assert!(
                !(secret && shown.contains("hunter2")),
                "a secret shows: {shown}"
            );
            // Secrets are shown as `***`, which is no password of anybody: what has one can't be taken again.
            if !loaded.config.effective_toml().contains("***") {
                std::fs::write(&file, &shown).expect("the scratch file can be written");
                let again = load(&sources(&file));
                let again = again.unwrap_or_else(|errors| panic!("{errors}\n{shown}"));
                assert_eq!(again.config.effective_toml(), shown);
            }
        }
    }
    let _ = std::fs::remove_file(&file);
}

fn scratch() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    let directory = if shared.is_dir() {
        shared
    } else {
        std::env::temp_dir()
    };
    directory.join(format!("pgvalet-fuzz-{}.toml", std::process::id()))
}

fn sources(file: &Path) -> Sources {
    Sources {
        file: Some(file.to_owned()),
        os_user: Some("somebody".to_owned()),
        ..Sources::default()
    }
}
