//! `unionfs convert`: forms that only some programs write, and names that stand in the way.

use crate::support::{Place, assert_same, tree};

/// A layer `layer` over `below`, in the kernel's overlayfs: the names that it shows.
fn kernel_shows(place: &Place, options: &str) -> String {
    place.shell(&format!(
        "mkdir -p up work; mount -t overlay -o {options}lowerdir=layer:below,upperdir=up,workdir=work none m; \
         (cd m; find . | sort | tr '\\n' ' '); umount m; rm -rf up work"
    ))
}

/// fuse-overlayfs of an ordinary user marks a directory by an attribute that nobody else reads, and
/// by a file.
#[test]
fn opaque_marks_of_rootless_fuse_overlayfs() {
    let place = Place::new("");
    place.shell("mkdir -p below/d layer/d; : > below/d/old; : > layer/d/new");
    let mark = "setfattr -n user.fuseoverlayfs.opaque -v y layer/d; : > layer/d/.wh..wh..opq";
    for text in [
        mark,
        "rm layer/d/.wh..wh..opq",
        "setfattr -x trusted.overlay.opaque layer/d; setfattr -n user.overlay.opaque -v y layer/d",
    ] {
        place.shell(text);
        place.good(&["convert", "--to", "overlay", "layer"]);
        assert_eq!(kernel_shows(&place, ""), ". ./d ./d/new ", "{text}");
        assert_eq!(
            place.shell("getfattr -m - layer/d | grep overlay"),
            "trusted.overlay.opaque\n"
        );
        place.shell("setfattr -n user.fuseoverlayfs.opaque -v y layer/d");
        place.shell(if text == mark {
            ": > layer/d/.wh..wh..opq"
        } else {
            ":"
        });
    }
    place.good(&[
        "convert",
        "--to",
        "overlay",
        "-o",
        "userxattr,lowerdir=below",
        "layer",
    ]);
    assert_eq!(
        place.shell("getfattr -m - layer/d | grep overlay"),
        "user.overlay.opaque\n"
    );
    assert_eq!(kernel_shows(&place, "userxattr,"), ". ./d ./d/new ");
}

/// Empty files with an attribute are whiteouts of the kernel's newer forms.
#[test]
fn whiteouts_that_are_attributes() {
    for to in ["overlay", "fuse-overlayfs", "aufs"] {
        let place = Place::new("");
        place.shell(
            "mkdir -p below/d layer/d; : > below/d/x; : > below/d/y; : > layer/d/x; : > layer/d/z
             setfattr -n trusted.overlay.opaque -v x layer/d; setfattr -n trusted.overlay.whiteout layer/d/x",
        );
        place.good(&["convert", "--to", to, "layer"]);
        if to != "aufs" {
            assert_eq!(kernel_shows(&place, ""), ". ./d ./d/y ./d/z ", "{to}");
        }
        assert_eq!(
            place.shell("find layer -type c -o -name .wh.x | wc -l"),
            "1\n"
        );
    }
}

#[test]
fn what_unionfs_fuse_cannot_say_is_refused_at_once() {
    let place = Place::new("");
    for make in [
        ": > layer/.wh..wh..opq",
        "mkdir layer/.unionfs; echo mine > layer/.unionfs/file; : > layer/.wh.x",
        "mkdir layer/.unionfs; : > layer/.wh.x",
        "ln -s x layer/.unionfs",
    ] {
        place.shell(&format!("mkdir -p layer; {make}"));
        let before = place.shell("find layer | sort");
        place.refused(&["convert", "--to", "unionfs-fuse", "layer"]);
        assert_eq!(place.shell("find layer | sort; rm -r layer"), before);
    }
}

/// A directory of that name which holds no marks is the users' own.
#[test]
fn a_directory_named_like_that_of_unionfs_fuse() {
    let place = Place::new("");
    place.shell("mkdir -p layer/.unionfs/d/e; : > layer/.unionfs/.wh.x; : > layer/.wh.y");
    place.good(&["convert", "--to", "overlay", "layer"]);
    assert_eq!(
        place.shell("cd layer; find . | sort | tr '\\n' ' '; find . -type c | sort | tr '\\n' ' '"),
        ". ./.unionfs ./.unionfs/d ./.unionfs/d/e ./.unionfs/x ./y ./.unionfs/x ./y "
    );
    // With marks in it, what is not one stays.
    place.shell("rm -r layer; mkdir -p layer/.unionfs; : > layer/.unionfs/x_HIDDEN~; : > layer/.unionfs/file");
    place.good(&["convert", "--to", "aufs", "layer"]);
    assert_eq!(
        place.shell("cd layer; find . | sort | tr '\\n' ' '"),
        ". ./.unionfs ./.unionfs/file ./.wh..wh.aufs ./.wh.x "
    );
}

/// unionfs-fuse hides a name in a directory that its branch does not have: it is made as the lowers
/// have it.
#[test]
fn hidden_names_in_directories_of_the_lowers() {
    for to in ["aufs", "overlay", "fuse-overlayfs"] {
        let place = Place::new("");
        place.shell(
            "chown 5:6 l1/d; chmod 2750 l1/d; setfacl -m d:u:7:rwx l1/d; setfattr -n user.k -v v l1/d
             touch -d 2001-02-03 l1/d l2/d l1/d/sub; rm -rf plain; cp -a l2 plain; cp -aT l1 plain
             rm plain/d/b plain/d/sub/x plain/large; rm -r plain/gone plain/whole; mkdir plain/whole; : > plain/whole/n
             touch -d 2002-02-02 plain/d plain/d/sub plain/whole/n plain/whole
             mkdir -p u/.unionfs/d/sub u/.unionfs/gone u/whole u/.unionfs/whole/in u/.unionfs/whole_HIDDEN~
             : > u/whole/n; cd u/.unionfs
             : > large_HIDDEN~; : > d/b_HIDDEN~; : > d/sub/x_HIDDEN~; mkdir gone_HIDDEN~
             : > gone/x_HIDDEN~; : > whole/in/w_HIDDEN~; touch -d 2002-02-02 ../whole/n ../whole",
        );
        // Below a file nothing shows.
        place.shell("mkdir -p u/.unionfs/f; : > u/.unionfs/f/x_HIDDEN~; cp -a l1/f u/f");
        let before = place.shell("find u | sort");
        let told = place.refused(&["convert", "--to", to, "u"]);
        assert!(told.contains("-o lowerdir="), "{told}");
        assert_eq!(place.shell("find u | sort"), before);
        let lowers = place.lowers().into_string().unwrap();
        place.good(&["convert", "--to", to, "-o", &lowers, "u"]);
        assert_eq!(place.shell("ls -A u | grep -c unionfs || :"), "0\n");
        let seen = || {
            let mut seen = tree(&place.path("m"));
            // Copied for the marks, they lose the times that they had.
            seen.retain(|path, _| {
                !["f", "f2", "d/f3"]
                    .map(std::path::Path::new)
                    .contains(&&**path)
            });
            seen
        };
        place.mount();
        let ours = seen();
        place.unmount();
        let mut plain = tree(&place.path("plain"));
        plain.retain(|path, _| {
            !["f", "f2", "d/f3"]
                .map(std::path::Path::new)
                .contains(&&**path)
        });
        for (path, facts) in &mut plain {
            if ["d", "d/sub"].map(std::path::Path::new).contains(&&**path) {
                *facts = facts.replace(" 1012608000.", " 981158400.");
            }
        }
        assert_same(&plain, &ours);
        if to == "overlay" {
            place.shell(
                "rm -rf w; mkdir w; mount -t overlay -o lowerdir=l1:l2,upperdir=u,workdir=w none m",
            );
            let kernels = seen();
            place.shell("umount m");
            assert_same(&plain, &kernels);
        }
    }
}

/// unionfs-fuse itself writes the branch, and reads what was converted back.
#[test]
fn unionfs_fuse_shows_the_same() {
    let place = Place::new("");
    let program = "/usr/local/lib/unionfs-fuse/usr/bin/unionfs";
    let names = || {
        place.shell(&format!("{program} -o cow u=RW:l1=RO:l2=RO m"));
        let names = place.shell("cd m; find . | grep -v '^./.unionfs' | sort");
        place.shell("umount m");
        names
    };
    place.shell(&format!(
        "{program} -o cow u=RW:l1=RO:l2=RO m; cd m; rm d/a f d/sub/x; rm -r gone moved; mkdir moved
         : > moved/n; rm whole/in/w; rmdir whole/in; mkdir kind2; cd ..; umount m"
    ));
    let before = names();
    let lowers = place.lowers().into_string().unwrap();
    place.good(&["convert", "--to", "overlay", "-o", &lowers, "u"]);
    assert_eq!(place.shell("ls -A u | grep -c unionfs || :"), "0\n");
    place.shell("mount -t overlay -o lowerdir=l1:l2,upperdir=u,workdir=w none m");
    let kernels = place.shell("cd m; find . | sort; cd ..; umount m");
    assert_eq!(kernels, before);
    place.good(&["convert", "--to", "unionfs-fuse-1.0", "u"]);
    assert_eq!(names(), before);
    // The other versions have another directory for them.
    place.good(&["convert", "--to", "unionfs-fuse", "u"]);
    assert_eq!(place.shell("ls -A u | grep unionfs"), ".unionfs\n");
    place.good(&["convert", "--to", "aufs", "u"]);
    place.mount();
    let ours = place.shell("cd m; find . | sort");
    place.unmount();
    assert_eq!(ours, before);
}

#[test]
fn names_of_aufs_that_others_would_show() {
    let place = Place::new("");
    place.shell("mkdir -p layer/d; : > layer/d/.wh..wh.q.0001");
    let told = place.refused(&["convert", "--to", "overlay", "layer"]);
    assert!(told.contains("check --repair"), "{told}");
    place.good(&["check", "--repair", "layer"]);
    place.good(&["convert", "--to", "overlay", "layer"]);
}
