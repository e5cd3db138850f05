"""A change of profile as a command begins it, what is refused, and who can read the bank."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
from sqlalchemy.exc import IntegrityError, ProgrammingError
from typer.testing import CliRunner

from app import cli
from app.commands.stack import _change
from app.db.session import Asker
from app.errors import ConflictError, ProfileError
from app.memory.profile import Profile
from tests import edges
from tests.conftest import (
    PROFILE,
    Company,
    administer,
    ask,
    change,
    work_off,
)
from tests.edges import find_bank
from tests.profiles import NEXT, begin, filled, profile_of


@pytest.fixture
def whole(company: Company) -> Company:
    return filled(company)


class TestRefusals:
    def test_the_profile_that_it_has_already(self, whole: Company) -> None:
        with pytest.raises(ConflictError, match=f"encoded under profile {PROFILE} already"):
            begin(whole, PROFILE)

    @pytest.mark.parametrize("role", ["admin", "worker"])
    def test_a_profile_that_it_has_no_memories_of(self, whole: Company, role: str) -> None:
        begin(whole, "third")
        edges.drop(whole.tenant, whole.bank.id)
        with pytest.raises(IntegrityError, match=f"has memories of profile {PROFILE} only"):
            change(Asker(role, whole.tenant), "UPDATE bank SET profile_id = 'third'")  # type: ignore[arg-type]

    def test_an_unknown_profile(self, whole: Company) -> None:
        with pytest.raises(IntegrityError, match="next_profile_id"):
            administer("UPDATE bank SET next_profile_id = 'nobody knows it'")

    @pytest.mark.parametrize(
        ("role", "statement"),
        [
            ("app", "UPDATE bank SET next_profile_id = NULL"),
            ("app", "SELECT bank_switch(1, 1)"),
            ("app", "SELECT * FROM changing_banks()"),
            ("worker", "UPDATE bank SET name = 'mine'"),
        ],
    )
    def test_who_has_no_right_to_it(self, whole: Company, role: str, statement: str) -> None:
        with pytest.raises(ProgrammingError, match="permission denied"):
            change(Asker(role, whole.tenant), statement)  # type: ignore[arg-type]

    def test_a_worker_changes_no_other_tenants_bank(
        self, whole: Company, new_company: Callable[[str], Company]
    ) -> None:
        other = new_company("quay")
        begin(whole)
        as_worker = Asker("worker", other.tenant)
        assert change(as_worker, "UPDATE bank SET next_profile_id = NULL") == 1
        assert ask(as_worker, f"SELECT bank_switch({whole.tenant}, {whole.bank.id})") == [(False,)]
        assert profile_of(whole) == (PROFILE, NEXT)


OURS = Profile(model="m" * 64, embedder="e" * 64, prefix="Facts:", codec="rotated4")


class TestCommand:
    @pytest.fixture
    def settings_of(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Profile], None]:
        return lambda profile: monkeypatch.setattr("app.runtime.identity.profile", lambda: profile)

    def run(self, *arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["bank", "reencode", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    def test_it_begins_and_drops_a_change_to_the_profile_of_the_settings(
        self, whole: Company, settings_of: Callable[[Profile], None]
    ) -> None:
        settings_of(OURS)
        arguments = ("handbook", "--tenant", "harbor", "--json")
        assert json.loads(self.run(*arguments)) == {
            "bank": "handbook",
            "profile": PROFILE,
            "next_profile": OURS.id,
        }
        assert profile_of(whole) == (PROFILE, OURS.id)
        [row] = edges.bank_status()
        assert row["next_profile_id"] == OURS.id
        told = _change(row)
        assert told.startswith(f"from profile {PROFILE[:12]} to {OURS.id[:12]}: 0 of 4 chunks, 4 ")
        assert "MEMBANK_CODEC: None -> rotated4" in told
        listed = CliRunner().invoke(cli.app, ["jobs", "list"]).stdout
        assert listed.count(f"profile {OURS.id[:12]}") == 4
        assert json.loads(self.run(*arguments, "--cancel"))["next_profile"] is None
        assert profile_of(whole) == (PROFILE, None)
        with pytest.raises(ConflictError, match="nothing to cancel"):
            self.run(*arguments, "--cancel")

    def test_readers_of_the_same_models_may_differ_in_the_rest(
        self, whole: Company, settings_of: Callable[[Profile], None]
    ) -> None:
        from app.runtime.identity import require_splitting
        from app.runtime.models import codec_of

        begin(whole, OURS.id, OURS.json())
        work_off(profile=OURS.id)
        edges.switch()
        bank = find_bank("harbor", "handbook")
        assert bank.spec == asdict(OURS)
        settings_of(replace(OURS, codec="int8", selection="match", chunk_tokens=64))
        assert codec_of(bank).name == "rotated4"
        with pytest.raises(ProfileError, match="another chunk_tokens: set chunk_tokens as"):
            require_splitting(bank)
        settings_of(replace(OURS, codec="int8"))
        require_splitting(bank)
        settings_of(replace(OURS, model="x" * 64, embedder="y" * 64))
        begin(whole, "third")
        says = (
            f"bank 'handbook' is encoded under profile {OURS.id} since .* re-encoded under third;"
            ".*another model, embedder: set MEMBANK_MODEL and MEMBANK_EMBEDDER"
        )
        with pytest.raises(ProfileError, match=says):
            codec_of(find_bank("harbor", "handbook"))
