# make                 builds the release (CARGO_TARGET_DIR is respected)
# make install         puts it in place; PREFIX, DESTDIR and the directories below may be given.
#                      FUSE_OVERLAYFS=1 adds a link of that name, for programs that run fuse-overlayfs
# make uninstall       removes what install, called with the same variables, has put there
# make deb             makes a Debian package (needs cargo-deb)

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
# mount(8) looks for its helpers only here, wherever the rest is.
SBINDIR ?= /sbin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/unionfs
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d

CARGO ?= cargo
INSTALL ?= install
CARGO_TARGET_DIR ?= target
# Where the two programs were built; another profile than release is for the tests.
BUILT ?= $(CARGO_TARGET_DIR)/release

FUSE_OVERLAYFS ?= 0

# The helper goes by its name: mount -t unionfs, -t fuse.unionfs, -t fuse3.unionfs.
HELPER = mount.unionfs
HELPER_LINKS = mount.fuse.unionfs mount.fuse3.unionfs
MANPAGES = $(wildcard docs/*.8)
BASH = $(wildcard docs/completions/*.bash)
ZSH = $(wildcard docs/completions/_*)
FISH = $(wildcard docs/completions/*.fish)
DOCUMENTS = README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE $(wildcard docs/*.md)

.PHONY: all deb install uninstall

all:
	UNIONFS_BINDIR='$(BINDIR)' $(CARGO) build --release --workspace --locked

deb:
	$(CARGO) build --release --workspace --locked
	$(CARGO) deb --no-build --locked

# Without prerequisites: installing, perhaps as root, builds nothing.
$(BUILT)/unionfs $(BUILT)/mount-unionfs:
	@echo '$@ is missing: run make first' >&2; exit 1

install: $(BUILT)/unionfs $(BUILT)/mount-unionfs
	$(INSTALL) -D -m 0755 $(BUILT)/unionfs '$(DESTDIR)$(BINDIR)/unionfs'
	$(INSTALL) -D -m 0755 $(BUILT)/mount-unionfs '$(DESTDIR)$(SBINDIR)/$(HELPER)'
	for link in $(HELPER_LINKS); do ln -sf $(HELPER) '$(DESTDIR)$(SBINDIR)'/$$link || exit 1; done
	if [ '$(FUSE_OVERLAYFS)' = 1 ]; then ln -sf unionfs '$(DESTDIR)$(BINDIR)/fuse-overlayfs'; fi
	$(INSTALL) -d '$(DESTDIR)$(DOCDIR)' '$(DESTDIR)$(MANDIR)/man8'
	$(INSTALL) -m 0644 $(DOCUMENTS) '$(DESTDIR)$(DOCDIR)'
	for page in $(MANPAGES); do $(INSTALL) -m 0644 $$page '$(DESTDIR)$(MANDIR)/man8' || exit 1; done
	for file in $(BASH); do \
	    $(INSTALL) -D -m 0644 $$file '$(DESTDIR)$(BASHDIR)'/$$(basename $$file .bash) || exit 1; done
	for file in $(ZSH); do \
	    $(INSTALL) -D -m 0644 $$file '$(DESTDIR)$(ZSHDIR)'/$$(basename $$file) || exit 1; done
	for file in $(FISH); do \
	    $(INSTALL) -D -m 0644 $$file '$(DESTDIR)$(FISHDIR)'/$$(basename $$file) || exit 1; done

uninstall:
	rm -f '$(DESTDIR)$(BINDIR)/unionfs'
	for name in $(HELPER) $(HELPER_LINKS); do rm -f '$(DESTDIR)$(SBINDIR)'/$$name; done
	# Only a link to us: the real fuse-overlayfs may have come later.
	if [ "$$(readlink '$(DESTDIR)$(BINDIR)/fuse-overlayfs')" = unionfs ]; then \
	    rm -f '$(DESTDIR)$(BINDIR)/fuse-overlayfs'; fi
	for page in $(notdir $(MANPAGES)); do rm -f '$(DESTDIR)$(MANDIR)/man8'/$$page; done
	for file in $(notdir $(BASH)); do rm -f '$(DESTDIR)$(BASHDIR)'/$$(basename $$file .bash); done
	for file in $(notdir $(ZSH)); do rm -f '$(DESTDIR)$(ZSHDIR)'/$$file; done
	for file in $(notdir $(FISH)); do rm -f '$(DESTDIR)$(FISHDIR)'/$$file; done
	for file in $(notdir $(DOCUMENTS)); do rm -f '$(DESTDIR)$(DOCDIR)'/$$file; done
	if [ -d '$(DESTDIR)$(DOCDIR)' ]; then rmdir --ignore-fail-on-non-empty '$(DESTDIR)$(DOCDIR)'; fi
