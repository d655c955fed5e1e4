//! `-o` options, as `mount(8)` users write them.

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed.
    pub read_only: bool,
    /// suid and sgid bits of programs count.
    pub suid: bool,
    /// Device files are devices.
    pub dev: bool,
    /// Programs can be run.
    pub exec: bool,
    /// Access times are not updated.
    pub noatime: bool,
    /// Nor those of directories.
    pub nodiratime: bool,
    /// Every write is durable at once.
    pub sync: bool,
    /// Every change of a directory is durable at once.
    pub dirsync: bool,
    /// Users other than the one who mounts may use the mount.
    pub allow_other: bool,
    /// Requests may come over `io_uring`, where the kernel can.
    pub io_uring: bool,
    /// What `mount` and `df` show as the source; the backing directory if none.
    pub source: Option<String>,
}

impl Default for MountOptions {
    /// As FUSE mounts are by default: no devices, no suid programs.
    fn default() -> Self {
        Self {
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            noatime: false,
            nodiratime: false,
            sync: false,
            dirsync: false,
            allow_other: false,
            io_uring: true,
            source: None,
        }
    }
}

impl MountOptions {
    /// Takes in a comma-separated list.
    ///
    /// # Errors
    /// The option that is not known.
    pub fn parse(&mut self, list: &str) -> Result<(), String> {
        for option in list.split(',').filter(|o| !o.is_empty()) {
            self.parse_one(option)?;
        }
        Ok(())
    }

    fn parse_one(&mut self, option: &str) -> Result<(), String> {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "atime" | "relatime" => self.noatime = false,
            "noatime" => self.noatime = true,
            "diratime" => self.nodiratime = false,
            "nodiratime" => self.nodiratime = true,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "allow_other" => self.allow_other = true,
            "io_uring" => self.io_uring = true,
            "no_io_uring" => self.io_uring = false,
            // Always on: the kernel checks permissions.
            "default_permissions" => {}
            // For mount(8) and fstab, not for us.
            "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "user" | "users" | "nouser"
            | "owner" | "group" => {}
            _ => match option.split_once('=') {
                Some(("fsname", name)) => self.source = Some(name.to_owned()),
                Some((name, _)) if name.starts_with("x-") => {}
                _ if option.starts_with("x-") => {}
                _ => return Err(option.to_owned()),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_as_users_write_them() {
        let mut options = MountOptions::default();
        let list = "ro,allow_other,suid,nodev,noexec,noatime,,no_io_uring,x-systemd.automount,fsname=vault";
        options.parse(list).unwrap();
        assert!(options.read_only && options.allow_other && options.suid && options.noatime);
        assert!(!options.dev && !options.exec && !options.io_uring);
        assert_eq!(options.source.as_deref(), Some("vault"));
        assert_eq!(options.parse("rw,bogus"), Err("bogus".into()));
        assert!(!options.read_only);
    }
}
