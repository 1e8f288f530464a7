"""Released migrations are unchanged, comments included: databases record their checksums."""

import pytest

from backends.postgres.migrate import MIGRATIONS, read_migrations

RELEASED = {
    "0001_llm_usage": "a089226ac45c7d29438b7026d34cd95eae3386f5e33061e08672010d09b9d077",
    "0002_memory": "708f37dda9cd1adda96cb70f641f8a80c348caa3cd1ef0df0709ff26bd8b691a",
    "0003_tools": "ed1f1498b6915487bbb11ea18adaea556bde594b6e7d4ba3b96d70ea6cf712e4",
    "0004_workspace": "13f06d88af7cf4429fc20f23ca851871da69e31ba37ec5f22c926f69106a0e73",
    "0005_llm_ledger": "14c7e483f8bf97175bfbdf053af6eecb4460a3f9e097c1b07473de1e23490f08",
    "0006_llm_batches": "55786eab0338f46bbf43d84de0c9ce8712bee35a2f81ee5be62bce698e766aa7",
    "0007_messaging": "7ff0a6d1938cc1ddc05d37aa783da50d5c010f47bdf0da8c087dd99034f37ebd",
    "0008_agent_runs": "21a638b834a1a8002a1fcfbd04e7cf1185554cf17e4bbb0c8e9d9dbfc33084da",
    "0009_memory_lexicon": "ec35baa3847008f29008538ffce76024d64609e8620bb8af4d2f87852bffb4d5",
    "0010_agent_run_claims": "34afe68d7dacb6878fcd50525704bcbf8101006da50acca3fc85c282fc409558",
    "0011_purges": "4a4aa116ccbebb5534f55576995ba1eee6d9fdd010b215a9e21979bd50dd159b",
    "0012_tool_approvals": "3eb6cf3c2b102a4906ce516d3d13ca7413953df0c229b048ae0ff1d5c2f5fe23",
    "0013_readable_times": "098366520d28779e69b31196c55b4b541a72a5d735f49942296efad9b34a96b3",
    "0014_leases": "ace6e4694effda83f342534441f56a0f6d5ccb7fe8953ad4212431ffc89783d0",
    "0015_access": "5c144d9a7d24145ba87810e6c77f3b53ded3d12072122e40c7a4738954116867",
    "0016_retention": "425d1d8aeaab1a6113ac0556bbdb5e15d7145f6533e576ab27f9a2dbeeb28925",
    "0017_audit": "8564dcae86a62d18c88630cd2fa79a9d26d712c9ea3aeff6b68e710d3391ccef",
    "0018_turns_in_order": "39d7187c22d0746b89ac7d1dfd0a66d8a6072188f5feae00111b06f8b9242018",
    "0019_trace_ids": "14e49fde9ca0f99d6a9e8b4791dc15110e9dd89ed1f8beef5a1d83c06613cc33",
    "0020_waiting_work": "6fc164d5cf74e0cb33ddeca50a40f4f3c9f3a25d34b3c7f4cd49b8dc21306631",
    "0021_traces_of_runs": "5422b11218b5988c2bf81bc3890d6181fbe62e143605965a5412f51aa29feca1",
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_migration_is_as_it_was_released(name: str) -> None:
    found = {migration.name: migration.checksum for migration in read_migrations(MIGRATIONS)}
    assert found[name] == RELEASED[name], f"restore {name}, and add a new migration instead"
