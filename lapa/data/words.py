"""A file's or folder's name as an instruction, where it reads as words.

Cameras, recorders, converters and collections name files by counters, dates, ids and words such as "clip": of those
nothing is left. "put the corn in the pot", "open_drawer_3" and "PickUpTheCup" are words.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise, takewhile

from lapa.data.folders import printable

CAMERAS = """
    selfie selfies dashcam bodycam drone wyze eufy tapo reolink hikvision img image images imgs pic picture pictures
    photo photos foto fotos vid vids video videos mov movie movies mvi film films clip clips dsc dscn dscf dcim pxl
    gopr gopro gh gx gl gp gs dji mavic insta inshot capcut lv vn sam mah mvimg burst pano hdr lrv thm hero cam cams
    camera cameras webcam ipcam nvr dvr cctv ch channel gmt hsr hfr night portrait slow mo motion zed realsense
    kinect azure orbbec luxonis oak logitech iphone ipad android samsung pixel whatsapp telegram signal wechat
    snapchat instagram tiktok youtube facebook messenger twitter discord zoom teams meet meeting obs vlc ffmpeg
    handbrake bandicam fraps xrecorder rpreplay quicktime screenflow camtasia loom win pro max mini screen screens
    screenshot screenrecording screenrecord screencast screencasts screencapture desktop capture captured recording
    recordings record recorded rec stream streams live replay trim trimmed cut edit edited export exported render
    rendered fullsizerender converted compressed resized small large preview proxy thumb thumbnail cover download
    downloads videoplayback reel reels story stories project timeline comp composition mp4 avi mkv webm gif hd sd
    fhd uhd fps hevc avc aac hq lq slomo slowmo timelapse lapse
"""
VIEWS = """
    left right top bottom front rear back side high low upper lower center centre middle wrist hand gripper eih head
    chest shoulder overhead third person first second ego egocentric exo exocentric external exterior fixed static
    main primary secondary view views angle rgb rgbd color colour col depth ir infrared gray grey mono stereo raw
    bgr bw observation observations agentview frontview sideview birdview eye inhand ext
"""
COLLECTIONS = """
    ep eps episode episodes traj trajs trajectory trajectories demo demos demonstration demonstrations rollout
    rollouts run runs trial trials test tests testing train training val valid validation eval evaluation sample
    samples example examples data dataset datasets sim simulated simulation real robot robots arm teleop human
    success successes successful fail failed failure failures result results res pred prediction gt label labels
    labelled unlabelled out output outputs input inputs final new old orig original copy copies version ver rev
    draft tmp temp untitled unnamed unknown noname default file files folder dir misc other stuff part parts pt seg
    segment segments chunk chunks shard scene scenes shot shots take takes session sessions seq seqs sequence
    sequences frame frames nr num number id idx index uid uuid hash name day date time timestamp set batch group
    task tasks subset split vol start end begin init goal action actions state env environment level step steps
    phase stage round game play object random policy agent expert baseline ours model ckpt checkpoint iter iteration
    epoch seed gen generated fake synth synthetic aug augmented crop cropped flip flipped exp exps experiment
    experiments heic heif jpg jpeg png aria user subject participant actor lab labs kitti kinetics epic ucf hmdb
    something somethingsomething libero calvin droid bridge aloha umi franka panda kuka xarm koch widowx sawyer
    baxter jaco
"""
OTHER_LANGUAGES = """
    bildschirm bildschirmaufnahme bildschirmaufzeichnung aufnahme aufnahmen aufzeichnung datei kopie unbenannt bild
    bilder ohne titel bearbeitet neu neue neuer alt fertig versuch probe durchlauf kamera links rechts oben unten
    vorne hinten vidéo vidéos enregistrement enregistrements écran ecran capture essai copie sans titre nouveau
    nouvelle gauche droite caméra fichier séquence prise épisode projet grabación grabacion grabaciones pantalla
    captura vídeo copia archivo sin título titulo nuevo nueva prueba cámara camara izquierda derecha película
    pelicula toma episodio proyecto registrazione registrazioni schermo acquisizione senza titolo nuovo prova
    telecamera sinistra destra filmato ripresa gravação gravacao gravações tela cópia sem arquivo novo teste câmera
    esquerda direita opname schermopname beeldopname bestand naamloos nieuw proef beeld inspelning skärminspelning
    skärm kopia namnlös ny försök skärmbild optagelse skærmoptagelse opptak skjermopptak nagranie ekranu ekran nowy
    próba plik lewa prawa wideo kayıt kaydı kopya yeni deneme görüntü запись записи экрана экран видео видеозапись
    ролик клип копия новый новая без названия камера файл снимок проба тест фильм дубль эпизод сцена 视频 影片 影像
    录像 录屏 录制 屏幕录制 屏幕录像 屏幕截图 微信视频 微信图片 未命名 无标题 副本 新建 剪辑 拍摄 相机 图片 照片
    测试 螢幕錄影 螢幕錄製 錄影 錄製 視頻 画面収録 画面録画 動画 ビデオ 録画 無題 コピー 撮影 映像 화면 기록
    화면기록 동영상 녹화 비디오 영상 복사본 무제 वीडियो فيديو تسجيل شاشة الشاشة نسخة וידאו วิดีโอ βίντεο
"""
BETWEEN = """
    a an at on of from to the and or for with by my our his her this no in um am pm uhr von vom bei und der die das
    ein eine mein meine de du des la le les un une à et del el los las al y il lo gli di da do dos das em o na van
    het een en op met w z i на о в с от и january february march april may june july august september october
    november december jan feb mar apr jun jul aug sep sept oct nov dec januar februar märz mai juni juli oktober
    dezember mon tue wed thu fri sat sun monday tuesday wednesday thursday friday saturday sunday montag dienstag
    mittwoch donnerstag freitag samstag sonntag
"""
# Words that say how a file came to be and not what it shows: a name of nothing else is no instruction.
SAYS_NOTHING = frozenset(f"{CAMERAS} {VIEWS} {COLLECTIONS} {OTHER_LANGUAGES} {BETWEEN}".split())
COUNTERS = """
    ep episode traj trajectory demo rollout run trial test take clip video vid img image scene seq part seg cam
    camera view task sample session set batch id no nr versuch aufnahme prise toma 视频 動画 동영상 видео
"""
COUNTED = frozenset(COUNTERS.split())  # with a number behind it, such a word is no part of the instruction
MARKS = {"rgb", "depth", "mp4", "copy", "kopie", "copie", "copia", "trim", "trimmed", "edited", "final"}  # at the end
PLACES = {"on", "to", "in", "at", "from", "of", "the", "with", "into", "onto", "and"}  # a number behind belongs there
UNITS = re.compile(r"\d+(st|nd|rd|th|cm|mm|m|ml|l|kg|g|deg|x|d|s)", re.IGNORECASE)
DATE = re.compile(r"\b(19|20)(\d{6}|\d{12}|\d\d( \d\d?){2})\b|\b(\d\d? ){2}(19|20)\d\d\b")
ODD = re.compile(r"q(?!u)|[jvxzqw]{3}|x[kqzj]|[bcdfghjklmnpqrstvwxz]{8}")  # not to be found in words
LONGEST = 30  # letters of a word


def words(stem: str) -> str:
    """ "pick_up-the_Cup_003" -> "pick up the Cup"; "" for a camera's "IMG_0042" and all else that does not read as
    words. Numbers and counters around the words are left out ("episode_12_open_drawer", "cup_take2")."""
    text = unicodedata.normalize("NFC", printable(stem)).strip()
    if _is_id(text):
        return ""
    said = [piece for token in _tokens(text) for piece in _pieces(token)]
    while said and (_is_number(said[-1]) or _is_code(said[-1]) or said[-1].casefold() in MARKS):
        if len(said) > 1 and said[-2].casefold() in PLACES and len(said[-1]) < 3:
            break
        last = said.pop()
        if said and _is_number(last) and said[-1].casefold() in COUNTED:
            said.pop()
    while said and (ahead := _ahead(said)):
        del said[:ahead]
    return " ".join(said) if any(_is_word(piece) for piece in said) else ""


def _ahead(said: list[str]) -> int:
    """How many pieces at the start are no part of the instruction: a date and the numbers around it, an id, a counter,
    a word that is counted."""
    run = list(takewhile(lambda piece: any(c.isdecimal() for c in piece) and not UNITS.fullmatch(piece), said))
    if DATE.search(" ".join(re.findall(r"\d+", " ".join(run)))):
        return len(run)
    if _is_number(said[0]):
        return int(len(said[0]) > 2 or said[0][0] == "0")
    if said[0].casefold() in COUNTED and len(said) > 1 and _is_number(said[1]):
        return 2
    return int(_is_code(said[0]))


def _is_id(text: str) -> bool:
    """Is the whole name an id? A word of eleven letters is none."""
    if re.fullmatch(r"(?i)v_[a-z]+_g\d+_c\d+|(.*[\W_])?[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", text):
        return True
    if re.fullmatch(r"(?i)[0-9a-f]{8,}", text) and re.search(r"\d", text):
        return True
    if named := re.fullmatch(r"([\w-]{11})([_-]\d+([.]\d+)?)*", text, re.ASCII):  # a video of YouTube, or a part of it
        inner = re.split(r"[_-]", named[1])
        return any(not re.fullmatch(r"[a-z]*|[A-Z]?[a-z]+|[A-Z]+|\d+|([A-Z][a-z]{2,})+\d*|[a-zA-Z]+\d{1,3}", part)
                   for part in inner)  # fmt: skip
    return False


def _tokens(text: str) -> list[str]:
    """What stands between blanks and punctuation. Marks that belong to a letter, as in Hindi, are no punctuation."""
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" or c == "'" else " " for c in text).split()


def _pieces(token: str) -> list[str]:
    """A token, parted where words and numbers are run together: "PickUpCup", "drawer3"."""
    token = token.strip("'")
    runs = re.findall(r"\d+|[^\d]+", token)
    if len(runs) == 2 and not UNITS.fullmatch(token):
        letters = next(run for run in runs if not run.isdecimal())
        few = len(token) - len(letters) <= 3 and len(letters) > 2
        if (few or letters.casefold() in COUNTED) and not _is_code(letters):
            return [piece for run in runs for piece in _pieces(run)]
    if len(runs) == 1 and token.casefold() not in SAYS_NOTHING and not _is_code(token):
        return _humps(token)
    return [token] if token else []


def _humps(token: str) -> list[str]:
    """ "PickUpCup" -> "Pick", "Up", "Cup"."""
    big = [i for i in range(1, len(token)) if token[i].isupper()]
    starts = [i for i in big if token[i - 1].islower() or token[i + 1 : i + 2].islower()]
    return [token[a:b] for a, b in pairwise([0, *starts, len(token)])]


def _is_number(piece: str) -> bool:
    return piece.isdecimal()


def _is_code(piece: str) -> bool:
    """Letters and digits in one, or letters that make no word: an id, a size, a counter."""
    if piece.isdecimal():
        return False
    if any(c.isdecimal() for c in piece):
        return not UNITS.fullmatch(piece)
    if not piece.isascii():
        return False
    if len(piece) > LONGEST or (len(piece) > 1 and not re.search(r"[aeiouy]", piece.lower())):
        return piece.casefold() not in SAYS_NOTHING
    if piece.isupper() or piece.islower() or piece.istitle():
        return bool(ODD.search(piece.lower()))
    humps = _humps(piece)
    return len(piece) < 2.5 * len(humps) or any(
        not re.search(r"[aeiouy]", hump.lower()) or ODD.search(hump.lower()) for hump in humps
    )


def _is_word(piece: str) -> bool:
    """Does it say what is to be done? In scripts without blanks one sign may."""
    if piece.casefold() in SAYS_NOTHING or _is_code(piece) or not any(c.isalpha() for c in piece):
        return False
    shortest = 1 if unicodedata.category(piece[0]) == "Lo" else 3
    return len(piece) >= shortest or piece.casefold() in ("go", "do")
