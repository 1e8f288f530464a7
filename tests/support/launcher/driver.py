"""Runs the real supervisor over the stand-in graph, or over the real graph's command.

Usage: driver.py <journal file> [stand-in mode | --real]
"""

import asyncio
import sys
from pathlib import Path

from configs.environment import REPOSITORY, read_environment
from launcher.console import Console
from launcher.serve import serve_command
from launcher.supervisor import Supervisor

STAND_IN = Path(__file__).with_name("stand_in.py")
MIGRATE = """
import asyncio, os, psycopg
async def main():
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as connection:
        table = "migrated (at timestamptz DEFAULT now())"
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        await connection.execute("INSERT INTO migrated DEFAULT VALUES")
        await connection.execute("GRANT SELECT ON migrated TO daarion_service")
asyncio.run(main())
"""
command = (
    serve_command(REPOSITORY / "serve_config.yaml")
    if "--real" in sys.argv
    else [sys.executable, str(STAND_IN), *sys.argv[1:]]
)
migrate = [sys.executable, "-c", MIGRATE]
supervisor = Supervisor(read_environment(), Console(), migrate, command, memory_needed=0)
sys.exit(asyncio.run(supervisor.run()))
