"""Which names of files read as words."""

from __future__ import annotations

import pytest

from lapa.data.words import words

# Of the 57 in ../shared/data/reported_faults/names, and of other cameras, recorders, collections, ids and languages.
MEANINGLESS = """
0001_left|000012_rgb|00012|0a1b2c3d-1b2c-4d5e-8f90-a1b2c3d4e5f6|20231009_143321|2024-01-05_10-11-12|Aufnahme 12
2024-05-01 10-22-33|Bildschirmaufnahme 2024-05-01 um 10.22.33|C0001|DJI_0042|DJI_20240105101112_0042_D|DSC_0042
GH010042|GOPR0123|GX010123|IMG-20240105-WA0007|IMG_0042 copy|IMG_0042(1)|IMG_0042_2|MAH00042|MOV_0042|MVI_1234
My Movie 5|P01_01|P1000457|PXL_20230412_153000123.TS|RPReplay_Final1699999999|Screen Recording 2024-05-01 at 10.22.33
Screencast from 2024-05-01 10-22-33|Untitled|VID-20240105-WA0003|VID_20240105_101112|Video 3
WIN_20240105_10_11_12_Pro|WhatsApp Video 2024-05-01 at 10.22.33|cam_high|camera_0|color|dQw4w9WgXcQ
dQw4w9WgXcQ_000010_000020|demo_3|ep3|episode_000001|left_cam_0003|out|output1|rgb|rollout_2024-01-05|test_01|traj_0012
trim.4F3C2A10-1B2C-4D5E-8F90-A1B2C3D4E5F6|v_ApplyEyeMakeup_g01_c01|video_2024-01-05_10-11-12
GMT20240105-101112_Recording_1920x1080|zoom_0|lv_0_20240105101112|ch01_20240105101112|vlc-record-2024-01-05-10h11m12s
録画_001|微信视频20240105101112|屏幕录制2024-05-01 10.22.33|画面収録 2024-05-01|화면 기록 2024-05-01|Vidéo 12
Запись экрана 2024-05-01 в 10.22.33|Grabación de pantalla 2024-05-01 a las 10.22.33|Kopie von IMG_0042|-kZ3bYqFw_A
deadbeef0123|a1b2c3d4e5f6|P22_107|xKJHdfgQwZp|MVIMG_20230101_101112|A001_C002_0105AB|S001C001P001R001A001|a|b
observation.images.top|robot0_eye_in_hand|agentview_rgb|user1_session2|D20240105T101112|1704449472.123456|file-000
New Project 3|videoplayback|download (3)|success_3|final_final2|20bn_123|tmp8xk2q1|Video 3 (bearbeitet)|007|take 2
"""
WORDS = {
    "put the corn in the pot": "put the corn in the pot",
    "open_drawer_3": "open drawer",
    "PickUpTheCup": "Pick Up The Cup",
    "pick_up-the_Cup_003": "pick up the Cup",
    "wave": "wave",
    "video of a cup": "video of a cup",
    "go": "go",
    "episode_12_open_drawer": "open drawer",
    "task3_open_door": "open door",
    "pick cup take 2": "pick cup",
    "turn_left": "turn left",
    "move it to the right": "move it to the right",
    "OPEN DRAWER": "OPEN DRAWER",
    "put 2 cups in box 3": "put 2 cups in box",
    "put cup on B2": "put cup on B2",
    "rotate 90 degrees": "rotate 90 degrees",
    "push_block_A1_on_b2": "push block A1 on b2",
    "pick_cup_rgb": "pick cup",
    "drawer3": "drawer",
    "put_carrot_on_plate_20240105_101112": "put carrot on plate",
    "20240105_put_carrot": "put carrot",
    "2024-05-01_10-11-12_pick_up_cup": "pick up cup",
    "2024-05-01T10-11-12_pick_up_cup": "pick up cup",
    "01.05.2024 10.11 open drawer": "open drawer",
    "20240501_10_open_drawer": "open drawer",
    "3_fold": "3 fold",
    "001_2_cups": "2 cups",
    "fold_towel_v2": "fold towel",
    "hand me the cup": "hand me the cup",
    "take the apple": "take the apple",
    "cut_apple_01": "cut apple",
    "record the score": "record the score",
    "open_drawer": "open drawer",
    "Kühlschrank öffnen": "Kühlschrank öffnen",
    "abrir el cajón": "abrir el cajón",
    "拿起杯子": "拿起杯子",
    "推": "推",
    "कप उठाओ": "कप उठाओ",
    "コップを取る_3": "コップを取る",
    "поднять чашку 2": "поднять чашку",
    "컵을 들어": "컵을 들어",
    "don't touch the lamp": "don't touch the lamp",
    "o\u0308ffnen": "öffnen",
}


@pytest.mark.parametrize("name", [name for line in MEANINGLESS.strip().splitlines() for name in line.split("|")])
def test_names_that_say_nothing(name: str) -> None:
    assert words(name) == ""


@pytest.mark.parametrize(("name", "said"), WORDS.items())
def test_names_that_are_words(name: str, said: str) -> None:
    assert words(name) == said
